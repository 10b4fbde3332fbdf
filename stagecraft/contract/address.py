"""Addresses of servers: those of this machine, which no proxy reaches."""

from __future__ import annotations

import os

_LOOPBACK = ("127.0.0.1", "localhost")


def reach_loopback() -> None:
    """Have this process, and those it starts, ask servers of this machine directly, whatever proxy the environment names for the rest."""
    present = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    if present.strip() != "*":
        hosts = [host for host in present.split(",") if host]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*hosts, *_LOOPBACK]))
