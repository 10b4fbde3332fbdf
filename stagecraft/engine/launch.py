"""Several ranks on one machine without torchrun: this process is rank 0, the others are started beside it and end with it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def is_launched() -> bool:
    """Whether torchrun (or `ranks`) has given this process a rank already."""
    return "RANK" in os.environ


def world_size() -> int:
    """Ranks of the job, before they have found each other."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def ranks(processes: int, command: Sequence[str], logs: Path) -> Iterator[None]:
    """Give this process rank 0 of `processes` and start `python -m <command>` for every other rank.

    Does nothing under torchrun, which has done it. A rank that fails shows the end of its log when rank 0 fails with it.

    Args:
        command: module and arguments of the other ranks.
        logs: directory for `rank-N.log`.
    """
    if is_launched() or processes == 1:
        yield
        return
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    children: list[subprocess.Popen[bytes]] = []
    logs.mkdir(parents=True, exist_ok=True)
    try:
        for rank in range(1, processes):
            with (logs / f"rank-{rank}.log").open("wb") as log:
                children.append(subprocess.Popen(
                    [sys.executable, "-m", *command], stdout=log, stderr=subprocess.STDOUT, preexec_fn=_die_with_parent,
                    env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
        os.environ.update(world, RANK="0", LOCAL_RANK="0")
        try:
            yield
        except Exception as error:
            time.sleep(0.5)  # a rank that took us down with it needs a moment to be gone
            failed = [rank for rank, child in enumerate(children, 1) if child.poll() not in (None, 0)]
            for rank in failed:
                lines = (logs / f"rank-{rank}.log").read_text(errors="replace").strip().splitlines()[-15:]
                error.add_note(f"rank {rank} ended with code {children[rank - 1].returncode}; its last lines:\n" + "\n".join(lines))
            raise
        for child in children:
            child.wait(timeout=120)
    finally:
        for key in (*world, "RANK", "LOCAL_RANK"):
            os.environ.pop(key, None)
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
