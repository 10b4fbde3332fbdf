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


def claimed(port: int, mend: str) -> socket.socket:
    """What nobody else who asks for it has while it is open: a name, which the kernel frees with this process.

    For a server that is long in starting: until it listens, others may take its port (SO_REUSEADDR), and whoever asks there later meets
    the first of them to listen.

    Raises:
        UserError: somebody else has it.
    """
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0stagecraft-port-{port}")
    except OSError:
        claim.close()
        raise UserError("another server is starting there", where=f"port {port}", mend=mend) from None
    return claim
