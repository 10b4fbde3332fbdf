"""Processes that a test's process started, while others of them come and go."""

from collections.abc import Callable
from contextlib import suppress

import psutil


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
