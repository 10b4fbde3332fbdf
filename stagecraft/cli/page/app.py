"""The small server behind `stagecraft ui`: the record as one page, and a way for its chat to one vLLM server and nowhere else."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from stagecraft.cli.page.record import HEIGHT, WIDTH, collect
from stagecraft.contract.page import render_page
from stagecraft.contract.stages import PATHS

HERE = Path(__file__).parent
LARGEST = 1 << 20  # bytes of a question
STRICT = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
          "form-action 'none'; frame-ancestors 'none'")
# A stage's report has its style inside and no script at all.
REPORT = ("default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
          "sandbox")
NO_SERVER = "no server answers: start one with `stagecraft serve`"
NO_KEY = "the server asks for a key: start `stagecraft ui` with it as OPENAI_API_KEY"


class Question(BaseModel):
    """What the page may ask: a conversation, tools, whether to think. Everything else about the request is fixed here."""

    model_config = ConfigDict(extra="forbid")

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=200)
    tools: list[dict[str, Any]] = Field(default=[], max_length=50)
    thinking: bool = True
    max_tokens: int = Field(default=256, gt=0, le=8192)


def application(root: Path, upstream: str, mlflow: str = "") -> Starlette:
    """The page's server; to the model's it presents `OPENAI_API_KEY` where it is set.

    Args:
        root: the project directory.
        upstream: address of the vLLM server, without /v1.
        mlflow: address of MLflow, for a link; empty: none.
    """
    key = os.environ.get("OPENAI_API_KEY")
    client = httpx.AsyncClient(base_url=f"{upstream}/v1/", timeout=httpx.Timeout(10, read=300), trust_env=False,
                               headers={"Authorization": f"Bearer {key}"} if key else {})

    async def page(request: Request) -> Response:
        html = render_page(HERE / "page.html.j2", {"figure": figure, "size": size}, record=collect(root), mlflow=mlflow, width=WIDTH,
                           height=HEIGHT, upstream=upstream, reports=[name for name in ("evaluation", "corpus") if report_of(root, name)])
        return HTMLResponse(html)

    async def report(request: Request) -> Response:
        path = report_of(root, request.path_params["name"])
        if path is None:
            return PlainTextResponse("no such report", 404)
        return HTMLResponse(path.read_text(), headers={"Content-Security-Policy": REPORT})

    async def model(request: Request) -> Response:
        try:
            listed = (await client.get("models", timeout=5)).raise_for_status().json()["data"]
            return JSONResponse({"name": listed[0]["id"], "context": listed[0].get("max_model_len")})
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            return _unlisted(error)

    async def chat(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return _problem(415, "a question is application/json")  # which no form of another site can send
        body = await _body(request)
        if body is None:
            return _problem(413, f"a question has at most {LARGEST} bytes")
        try:
            asked = Question.model_validate_json(body)
        except ValidationError as error:
            return _problem(400, error.errors(include_url=False)[0]["msg"])
        try:
            name = (await client.get("models", timeout=5)).raise_for_status().json()["data"][0]["id"]
            request = client.build_request("POST", "chat/completions", json={
                "model": name, "messages": asked.messages, "max_tokens": asked.max_tokens, "temperature": 0.0, "stream": True,
                "chat_template_kwargs": {"enable_thinking": asked.thinking}, **({"tools": asked.tools} if asked.tools else {})})
            opened = await client.send(request, stream=True)
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            return _unlisted(error)
        if opened.status_code != 200:
            said = await opened.aread()
            await opened.aclose()
            return _problem(opened.status_code, _message(said))
        return StreamingResponse(_relay(opened), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    def asset(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
        async def send(request: Request) -> Response:
            return Response((HERE / name).read_text(), media_type=kind)
        return send

    @contextlib.asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    return Starlette(lifespan=life, middleware=[
        Middleware(Guarded), Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]),
    ], routes=[
        Route("/", page), Route("/report/{name}", report), Route("/api/model", model), Route("/api/chat", chat, methods=["POST"]),
        Route("/page.css", asset("page.css", "text/css")), Route("/page.js", asset("page.js", "text/javascript")),
        Route("/icon.svg", asset("icon.svg", "image/svg+xml")),
    ])


class Guarded:
    """Every answer says what a browser may do with it; a response's own policy stands."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                wanted = {b"content-security-policy": STRICT.encode(), b"x-content-type-options": b"nosniff",
                          b"referrer-policy": b"no-referrer", b"cross-origin-resource-policy": b"same-origin"}
                message["headers"] = [*message["headers"], *((name, value) for name, value in wanted.items() if name not in present)]
            await send(message)
        await self.app(scope, receive, guarded)


def report_of(root: Path, name: str) -> Path | None:
    """A stage's own report, of the artifacts that have one."""
    path = root / PATHS[name] / "report.html" if name in ("evaluation", "corpus") else None
    return path if path and path.is_file() else None


def figure(value: float) -> str:
    """A number for people: four digits."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e12 else f"{value:.4g}"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:,.1f} MB"


async def _body(request: Request) -> bytes | None:
    """The request's body; None once it is larger than `LARGEST`."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            return None
    return body


async def _relay(opened: httpx.Response) -> AsyncIterator[bytes]:
    """The server's events as they come; what cuts them short becomes one more. A client that leaves closes the server's stream."""
    try:
        async for part in opened.aiter_raw():
            yield part
    except httpx.HTTPError:
        yield f"data: {json.dumps({'error': {'message': 'the server ended in the middle of its answer'}})}\n\n".encode()
    finally:
        await opened.aclose()


def _problem(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status)


def _unlisted(error: Exception) -> Response:
    """Of a server that does not say which model it has."""
    asks = isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 401
    return _problem(401, NO_KEY) if asks else _problem(503, NO_SERVER)


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return "the server refuses"
