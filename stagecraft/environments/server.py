"""A built-in environment as a resource server: `python -m stagecraft.environments.server NAME PORT`, on loopback.

For environment servers apart from the trainer, on a cluster or under NeMo Gym's own agents. A session lives until newer ones
push it out: who lost a verdict on the way may ask for it again.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from secrets import token_urlsafe
from typing import Any

from fastapi import Body, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from stagecraft.contract.errors import exit_on_user_error
from stagecraft.environments.api import Environment, InvalidCallError, Session
from stagecraft.environments.library import environment

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


def main() -> None:
    """Serve the environment named until the process ends."""
    import uvicorn

    name, port = sys.argv[1:]
    uvicorn.run(application(environment(name)), host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    exit_on_user_error(main)
