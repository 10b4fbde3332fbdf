"""The machine under the GPUs: cores, memory, disk, shared memory, limits, clock, and the installed packages against the lock."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path

from stagecraft.contract.container import cores, free_memory, memory
from stagecraft.doctor.node import Node
from stagecraft.doctor.verdict import Check, attempt

SHARED = Path("/dev/shm")
LOCK = Path("requirements/laptop.lock")
OLDEST_PYTHON = (3, 11)
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


def machine_checks(node: Node, work: Path) -> list[Check]:
    """What the machine has, read in well under a second.

    Args:
        work: the directory the work will lie in.
    """
    return [
        *attempt("machine.cores", lambda: [_cores(node)]),
        *attempt("machine.memory", lambda: [_memory(node)]),
        *attempt("machine.disk", lambda: [_disk(node, work)]),
        *attempt("machine.shared_memory", lambda: [_shared_memory(node)]),
        *attempt("machine.open_files", lambda: [_open_files(node)]),
        *attempt("machine.clock", lambda: [_clock()]),
        *attempt("machine.python", lambda: [_python()]),
        *attempt("machine.packages", lambda: [_packages(LOCK)]),
        *attempt("machine.environment", lambda: [_environment(node)]),
    ]


def _cores(node: Node) -> Check:
    found = cores()
    return node.judge("machine.cores", "cores", found, "give the container or the machine more cores", f"{found:g} of {os.cpu_count()}")


def _memory(node: Node) -> Check:
    free = free_memory()
    return node.judge("machine.memory", "memory", free / 1e9, "end other programs, or use a larger machine",
                      f"{free / 1e9:.1f} GB free of {memory() / 1e9:.1f} GB")


def _disk(node: Node, work: Path) -> Check:
    if not os.access(work, os.W_OK):
        return Check("machine.disk", "fail", f"cannot write to {work}", "a directory to work in", "run from another, or give --work DIR")
    usage = shutil.disk_usage(work)
    return node.judge("machine.disk", "disk_free", usage.free / 1e9, "make room, or give --work DIR on a larger disk",
                      f"{usage.free / 1e9:.0f} GB free of {usage.total / 1e9:.0f} GB at {work}")


def _shared_memory(node: Node) -> Check:
    if not SHARED.is_dir():
        return Check("machine.shared_memory", "fail", f"no {SHARED}", "a tmpfs", "mount one: processes on one node talk through it")
    size = shutil.disk_usage(SHARED).free
    return node.judge("machine.shared_memory", "shared_memory", size / 1e9,
                      "docker run --shm-size=..., or an emptyDir of medium Memory at /dev/shm", f"{size / 1e9:.2f} GB free in {SHARED}")


def _open_files(node: Node) -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Check("machine.open_files", "ok", "no limit")
    return node.judge("machine.open_files", "open_files", soft, "ulimit -n, or LimitNOFILE of the container runtime",
                      f"{soft} (hard limit {hard if hard != resource.RLIM_INFINITY else 'none'})")


def _clock() -> Check:
    """A clock that is behind makes new files older than what they were made from, and certificates invalid."""
    newest = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    behind = newest - time.time()
    if behind > 1:
        return Check("machine.clock", "fail", f"{behind:.0f} s behind the files of this program", "a clock that is right",
                     "set the clock, and let NTP keep it")
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024))  # struct timex, all zero: only ask
    if state == _TIME_ERROR:
        return Check("machine.clock", "ok", "plausible; the kernel knows of no synchronisation (a virtual machine's host may do it)")
    return Check("machine.clock", "ok", "synchronised" if state >= 0 else "plausible")


def _python() -> Check:
    found, expected = ".".join(map(str, sys.version_info[:3])), f"{'.'.join(map(str, OLDEST_PYTHON))} or later"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return Check("machine.python", "fail", found, expected, "make setup PYTHON=python3.12")
    return Check("machine.python", "ok", found, expected)


def _packages(lock: Path) -> Check:
    """Installed packages against the lock; torch's CPU and CUDA builds are one version."""
    if not lock.is_file():
        return Check("machine.packages", "skip", f"no {lock} here")
    pinned = dict(line.split("==", 1) for line in lock.read_text().splitlines() if "==" in line and not line.startswith("#"))
    wrong = []
    for name, version in pinned.items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if installed.partition("+")[0] != version.partition("+")[0]:
            wrong.append(f"{name} {installed} instead of {version}")
    expected = f"the {len(pinned)} packages of {lock}"
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return Check("machine.packages", "warn", "; ".join(wrong[:3]) + more, expected, "make setup; a GPU image has packages of its own")
    return Check("machine.packages", "ok", f"{len(pinned)} as pinned", expected)


def _environment(node: Node) -> Check:
    """Variables that are set, but otherwise than this kind of node wants them."""
    other = [f"{line.name}={os.environ[line.name]} (not {line.value})" for line in node.environment
             if os.environ.get(line.name, line.value) != line.value]
    if other:
        return Check("machine.environment", "warn", "; ".join(other), "the lines of `stagecraft doctor --env`",
                     "unset them, or know why they differ")
    return Check("machine.environment", "ok", "no variable contradicts the profile")
