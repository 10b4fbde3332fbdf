"""Speeds against their floors: the disk under the work here, everything torch does in a process of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from stagecraft.doctor.node import Node
from stagecraft.doctor.process import lines
from stagecraft.doctor.verdict import Check, attempt

FILE_BYTES = 256 << 20
_CHUNK = 8 << 20
_DISK_SECONDS = 3.0  # of writing, and of reading

MENDS = {
    "all_reduce": "look at NVLink and the fabric above, then run nccl-tests' all_reduce_perf with NCCL_DEBUG=INFO",
    "memory_rate": "another program uses the memory, or a GPU is slowed down",
    **dict.fromkeys(("gemm_fp32", "gemm_bf16", "gemm_fp8"), "another program uses the processor, or it is slowed down (power, heat)"),
}


def speed_checks(node: Node, work: Path) -> list[Check]:
    """Measure; seconds on a laptop, a minute or two on a node with eight GPUs."""
    return [
        *attempt("speed.disk", lambda: _disk(node, work)),
        *attempt("speed.torch", lambda: _torch(node)),
    ]


def _torch(node: Node) -> list[Check]:
    timeout = 300 if node.gpu_names else 120
    answers, problem = lines("speed", timeout=timeout)
    checks = [_judged(node, answer) for answer in answers if answer.get("measure") in MENDS]
    if problem or not checks:
        done = ", ".join(check.name for check in checks) or "nothing"
        checks.append(Check("speed.torch", "fail", f"the measurements stopped after {done}: {problem or 'nothing was measured'}",
                            "all measurements", "if they hang, a device does: look at dmesg and reset it"))
    for name in node.bounds.keys() & MENDS.keys():
        if not problem and f"speed.{name}" not in {check.name for check in checks}:
            checks.append(Check(f"speed.{name}", "warn", "not measured", "", "see the other checks"))
    return checks


def _judged(node: Node, answer: dict[str, Any]) -> Check:
    """The verdict on one line of the measurements."""
    measure = answer["measure"]
    name = f"speed.{measure}"
    if "skipped" in answer:
        return Check(name, "skip", f"{answer['skipped']}: nothing to measure")
    value = answer.get("value")
    if not isinstance(value, (int, float)) or not value > 0:  # not a number is not above 0
        return Check(name, "fail", str(answer.get("failed", f"no figure: {value!r}")), "", MENDS[measure])
    check = node.judge(name, measure, float(value), MENDS[measure])
    return Check(name, check.status, f"{check.found} ({answer.get('where', '')})", check.expected, check.mend)


def _disk(node: Node, work: Path) -> list[Check]:
    """Write, flush to the disk, drop from the cache, read back; the file has no name, so nothing is left of it."""
    if not os.access(work, os.W_OK):
        return [Check("speed.disk_write", "skip", f"cannot write to {work}")]
    size = min(FILE_BYTES, os.statvfs(work).f_bavail * os.statvfs(work).f_frsize // 4)
    chunk = os.urandom(_CHUNK)
    path = work / f".stagecraft-doctor-{os.getpid()}"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        path.unlink()
        started, written = time.perf_counter(), 0
        while written < size and time.perf_counter() - started < _DISK_SECONDS:
            written += os.write(handle, chunk)
        os.fsync(handle)
        write = written / (time.perf_counter() - started)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(handle, 0, os.SEEK_SET)
        started, read = time.perf_counter(), 0
        while time.perf_counter() - started < _DISK_SECONDS and (data := os.read(handle, _CHUNK)):
            read += len(data)
        rate = read / (time.perf_counter() - started)
    finally:
        os.close(handle)
    if not written or not read:
        return [Check("speed.disk_write", "fail", f"{work} is full", "", "make room")]
    mend = "the disk is busy or slow: work on a local one (--work DIR)"
    return [
        node.judge("speed.disk_write", "disk_write", write / 1e6, mend, f"{write / 1e6:.0f} MB/s, {written >> 20} MiB and fsync"),
        node.judge("speed.disk_read", "disk_read", rate / 1e6, mend),
    ]
