"""A server that is kept up: one that dies is started again, unless it dies too often."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from stagecraft.inference.server import Server, ServerDiedError

RESTARTS, WITHIN_SECONDS = 3, 600.0


def keep_up(server: Server, up: Callable[[], None], down: Callable[[ServerDiedError], None]) -> None:
    """Have the server up until this is interrupted; it is stopped on the way out, requests under way first.

    Between two lives nothing listens on the port: clients see a refused connection, and those whose answer was under way vLLM's
    own error, or a cut connection if its API process was the one that died.

    Args:
        up: called whenever the server has become healthy.
        down: called when it has died and is about to be started again.

    Raises:
        ServerDiedError: it never came up, or died for the (`RESTARTS` + 1)th time `WITHIN_SECONDS`.
    """
    deaths: deque[float] = deque(maxlen=RESTARTS + 1)
    came_up = False
    while True:
        try:
            with server:
                came_up = True
                up()
                server.watch()
        except ServerDiedError as error:
            deaths.append(time.monotonic())
            if not came_up:
                raise
            if len(deaths) > RESTARTS and deaths[-1] - deaths[0] < WITHIN_SECONDS:
                seconds = deaths[-1] - deaths[0]
                raise ServerDiedError(f"died {len(deaths)} times in {seconds:.0f} seconds and is given up: {error}") from None
            down(error)
