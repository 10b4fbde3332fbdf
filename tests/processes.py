"""Processes that a test starts: ranks under torchrun, and what is below one while others come and go."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import suppress

import psutil


def torchrun(ranks: int, *command: str, timeout: float = 1800, **environment: str) -> str:
    """What so many ranks of a command, such as "-m", MODULE, write, once all have ended well."""
    with subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *command],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **environment}) as process:
        try:
            said, complaint = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its ranks, which wait for each other; killed it would leave them
            raise
    assert process.returncode == 0, complaint[-3000:]
    return said


def below(pid: int, wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Those that a process and its children started for which `wanted` holds."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if wanted(process):
                found.append(process)
    return found


def named(pid: int, name: str) -> list[psutil.Process]:
    """Those with `name` in their command line."""
    return below(pid, lambda process: name in " ".join(process.cmdline()))


def answers(url: str) -> bool:
    """Whether a server is up there."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False
