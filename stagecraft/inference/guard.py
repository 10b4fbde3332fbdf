"""What a server answers at all. vLLM asks for its key (`VLLM_API_KEY`) below a few paths alone and leaves others open that ask the model
just the same: `/invocations` of SageMaker, `/tokenize`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN = {"/health", "/metrics", "/ping", "/version"}
"""Asked without a key; none of them gives the model anything to do."""


class ApiAlone:
    """ASGI middleware: OpenAI's API and the paths in `OPEN`; everything else is not there."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and scope["path"] not in OPEN and not scope["path"].startswith("/v1/"):
            from starlette.responses import PlainTextResponse  # whoever checks a profile has no use for it

            await PlainTextResponse("not found", 404)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
