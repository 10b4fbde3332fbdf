"""A port to listen at, or one line on why there is none."""

from __future__ import annotations

import socket

from stagecraft.contract.errors import UserError


def listener(host: str, port: int, mend: str) -> socket.socket:
    """A socket that listens; of port 0 at a free one.

    Raises:
        UserError: something else listens there, the address is none of this machine's, or `port` is none.
    """
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or "not a port number").partition(" (")[0]  # Python adds what it attempted
        raise UserError(f"cannot listen there: {reason}", where=f"{host}, port {port}", mend=mend) from None
