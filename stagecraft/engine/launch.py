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
from threading import Event, Thread

MET = Event()  # set once this rank has found the others

_PR_SET_PDEATHSIG = 1
_PATIENCE = 10.0  # seconds between another rank's end and this one's


def is_launched() -> bool:
    """Whether torchrun (or `ranks`) has given this process a rank already."""
    return "RANK" in os.environ


def world_size() -> int:
    """Ranks of the job, before they have found each other."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Ranks of the job on this machine; from a launcher that does not tell, as torchrun and `ranks` do, those up to this one."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", int(os.environ.get("LOCAL_RANK", "0")) + 1))


@contextmanager
def ranks(processes: int, command: Sequence[str], logs: Path) -> Iterator[None]:
    """Give this process rank 0 of `processes` and start `python -m <command>` for every other rank.

    Does nothing under torchrun, which has done it. A rank that fails shows the end of its log when rank 0 fails with it; one that fails
    before the ranks have met, for whom rank 0 would wait in vain, ends the process with its exit code.

    Args:
        command: module and arguments of the other ranks.
        logs: directory for `rank-N.log`.
    """
    if is_launched() or processes == 1:
        yield
        return
    world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    children: list[subprocess.Popen[bytes]] = []
    over = Event()
    MET.clear()
    logs.mkdir(parents=True, exist_ok=True)
    try:
        for rank in range(1, processes):
            with (logs / f"rank-{rank}.log").open("wb") as log:
                children.append(subprocess.Popen(
                    [sys.executable, "-m", *command], stdout=log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent,
                    env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
        os.environ.update(world, RANK="0", LOCAL_RANK="0")
        Thread(target=_end_with, args=(children, logs, over), name="ranks", daemon=True).start()
        try:
            yield
        except Exception as error:
            time.sleep(0.5)  # a rank that took us down with it needs a moment to be gone
            for rank in _failed(children):
                error.add_note(_last_words(rank, children, logs))
            raise
        for child in children:
            child.wait(timeout=120)
    finally:
        over.set()
        for key in (*world, "RANK", "LOCAL_RANK"):
            os.environ.pop(key, None)
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()


def _failed(children: list[subprocess.Popen[bytes]]) -> list[int]:
    return [rank for rank, child in enumerate(children, 1) if child.poll() not in (None, 0)]


def _last_words(rank: int, children: list[subprocess.Popen[bytes]], logs: Path) -> str:
    lines = (logs / f"rank-{rank}.log").read_text(errors="replace").strip().splitlines()[-15:]
    return f"rank {rank} ended with code {children[rank - 1].returncode}; its last lines:\n" + "\n".join(lines)


def _end_with(children: list[subprocess.Popen[bytes]], logs: Path, over: Event) -> None:
    """Until the ranks have met, end this process some seconds after one of the others has failed: waiting, it can do nothing itself."""
    while not (failed := _failed(children)):
        if MET.is_set() or over.wait(0.5):
            return
    if over.wait(_PATIENCE) or MET.is_set():  # of the same mistake, this rank tells in its own words
        return
    print(_last_words(failed[0], children, logs), file=sys.stderr, flush=True)
    os._exit(max(children[failed[0] - 1].returncode, 1))


def die_with_parent() -> None:
    """Have this process killed when the thread that started it ends, however that does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
