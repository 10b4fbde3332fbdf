"""A built-in environment as a resource server: `python -m stagecraft.environments.server NAME PORT [--host ADDRESS]`.

For environment servers apart from the trainer, on a cluster or under NeMo Gym's own agents. A session lives until newer ones
push it out: who lost a verdict on the way may ask for it again. Whoever reaches it can have programs run in its sandbox: it listens on
loopback unless it is told otherwise.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Sequence
from secrets import token_urlsafe
from typing import Any

from fastapi import Body, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from stagecraft.contract.errors import UserError, exit_on_user_error
from stagecraft.contract.ports import listener
from stagecraft.environments.api import Environment, InvalidCallError, Session
from stagecraft.environments.confinement import refuse_without_sandbox
from stagecraft.environments.library import ENVIRONMENTS, environment

_COOKIE, _SESSIONS = "stagecraft_session", 10_000


def application(served: Environment) -> FastAPI:
    """The server of one environment."""
    app = FastAPI(title=served.name)
    sessions: OrderedDict[str, Session] = OrderedDict()

    @app.post("/seed_session")
    async def seed(row: dict[str, Any] = Body()) -> Response:  # noqa: B008
        try:
            session = served.seed(row)
        except (KeyError, TypeError) as error:
            return JSONResponse({"error": f"no row of {served.name}: {error!r}"}, status_code=422)
        key = token_urlsafe()
        sessions[key] = session
        if len(sessions) > _SESSIONS:
            sessions.popitem(last=False)
        answer = JSONResponse({})
        answer.set_cookie(_COOKIE, key, httponly=True)
        return answer

    @app.post("/verify")
    async def verify(request: Request, body: dict[str, Any] = Body()) -> Response:  # noqa: B008
        session = sessions.get(request.cookies.get(_COOKIE, ""), None)
        if session is None:
            return JSONResponse({"error": "no session: seed one first"}, status_code=409)
        reward = await run_in_threadpool(session.verify, body["response"]["output"])
        return JSONResponse({**body, "reward": reward.score, "parts": reward.parts})

    @app.post("/{tool}")
    async def call(tool: str, request: Request, arguments: Any = Body()) -> Response:  # noqa: B008
        session = sessions.get(request.cookies.get(_COOKIE, ""))
        if session is None:
            return JSONResponse({"error": "no session: seed one first"}, status_code=409)
        try:
            answer, status = await run_in_threadpool(session.call, tool, arguments), 200
        except InvalidCallError as invalid:
            answer, status = str(invalid), 422
        return PlainTextResponse(answer, status, media_type="application/json")

    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the environment named until the process ends.

    Raises:
        UserError: there is no such environment, it has no sandbox here, or address or port cannot be listened at.
    """
    parser = argparse.ArgumentParser(prog="python -m stagecraft.environments.server", description=__doc__)
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(ENVIRONMENTS)}")
    parser.add_argument("port", metavar="PORT", type=int, help="1 to 65535")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen at, such as 0.0.0.0 in a pod (default: loopback)")
    options = parser.parse_args(arguments)
    served = environment(options.name)
    refuse_without_sandbox([served], "NAME")
    if not 1 <= options.port <= 65535:
        raise UserError(f"{options.port} is no port", where="PORT", mend="give 1 to 65535")
    import uvicorn

    mend = "choose another, or end what uses it"
    with listener(options.host, options.port, mend) as listening:  # uvicorn itself would not say how to mend it
        uvicorn.Server(uvicorn.Config(application(served), log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    exit_on_user_error(main)
