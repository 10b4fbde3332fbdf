"""Addresses of servers: what a client can be made with, and those of this machine, which no proxy reaches."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from stagecraft.contract.errors import UserError

_LOOPBACK = ("127.0.0.1", "localhost")


def with_host(url: str) -> str:
    """The address, if a client can be made with it or it is empty: a mistyped port would be met only where the server is asked.

    Raises:
        ValueError: it has no host, or a port that is none.
    """
    parts = urlsplit(url)
    if url and (not parts.hostname or parts.port == 0):  # a port that is no number raises by itself
        raise ValueError("no host, or port 0")
    return url


def without_version(given: str) -> str:
    """The address of an OpenAI API as somebody typed it, up to `/v1`.

    Raises:
        UserError: it is none.
    """
    try:
        if not re.fullmatch(r"https?://\S+", given) or not given.isprintable():
            raise ValueError("http:// or https:// and a host make one")
        return with_host(given).rstrip("/").removesuffix("/v1")
    except ValueError as error:
        raise UserError(f"no address of a server: {error}", where=given, mend="give http://HOST:PORT") from None


def reach_loopback() -> None:
    """Have this process, and those it starts, ask servers of this machine directly, whatever proxy the environment names for the rest."""
    present = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    if present.strip() != "*":
        hosts = [host for host in present.split(",") if host]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*hosts, *_LOOPBACK]))
