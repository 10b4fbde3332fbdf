"""What this process may use of the machine: all of it, or what its container is given (control groups, version 2)."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def cores() -> float:
    """Cores: those of its affinity, less if its control group is given less."""
    allowed = float(len(os.sched_getaffinity(0)))
    quota, _, period = _control("cpu.max").partition(" ")
    return min(allowed, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else allowed


def memory() -> int:
    """Bytes of the machine, or of this control group if that is less."""
    total, limit = psutil.virtual_memory().total, _control("memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def free_memory() -> int:
    """Bytes that can still be had, within the limit of this control group where there is one.

    Cached files that are not in use, such as weights that were just verified, make room when it is needed: they are no part of what
    Kubernetes calls the working set, and none here.
    """
    free, limit = psutil.virtual_memory().available, _control("memory.max")
    if not limit.isdigit():
        return free
    counted = dict(line.split() for line in _control("memory.stat").splitlines())
    used = int(_control("memory.current") or 0) - int(counted.get("inactive_file", 0))
    return min(free, max(0, int(limit) - max(0, used)))


def _control(name: str) -> str:
    """A file of this process's control group, as a container sees it; empty where there is none."""
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return ""
