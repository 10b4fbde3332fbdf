"""What is measured: versions of torch, all-reduce, memory and matrix products. Prints one JSON object a line as each is known."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch

RANKS_WITHOUT_GPU = 2
_SECONDS = 0.5  # for each figure of each device


def main(what: str) -> None:
    """Print `versions`, or measure the `speed`."""
    if what == "versions":
        cuda = torch.version.cuda
        nccl = ".".join(map(str, torch.cuda.nccl.version())) if cuda else None
        _say(torch=torch.__version__, cuda=cuda, nccl=nccl, devices=torch.cuda.device_count())
        return
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
    # The ranks are forked, which is sound only before this process has touched CUDA or started threads: so they come first.
    _all_reduce(devices)
    _report("memory_rate", devices, memory_rate)
    _report("gemm_fp32", devices, lambda device: gemm(device, torch.float32))
    _report("gemm_bf16", devices, lambda device: gemm(device, torch.bfloat16))
    if devices != ["cpu"] and torch.cuda.get_device_capability() >= (8, 9):
        _report("gemm_fp8", devices, lambda device: gemm(device, torch.float8_e4m3fn))


def gemm(device: str, dtype: torch.dtype) -> float:
    """Rate of one square matrix product in TFLOP/s (2 n^3 operations)."""
    side = 512 if device == "cpu" else 8192  # on a CPU milliseconds, so that some are not interrupted by other programs
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    if dtype is torch.float8_e4m3fn:
        from torch.nn.functional import ScalingType, scaled_mm

        one = torch.ones(1, device=device)
        product = lambda: scaled_mm(left, right.t(), one, ScalingType.TensorWise, one, ScalingType.TensorWise)  # noqa: E731
    else:
        product = lambda: left @ right  # noqa: E731
    return 2 * side**3 / _seconds(product, device) / 1e12


def memory_rate(device: str) -> float:
    """Bytes read and written a second by a copy larger than any cache, in GB/s."""
    source = torch.ones((1 << 25) if device == "cpu" else (1 << 29), device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device) / 1e9


def _seconds(work: Callable[[], object], device: str) -> float:
    """Time of one piece of work: on a GPU the median of rounds, which a GPU that slows down when warm cannot hide from; on a CPU,
    which other programs share, the best."""
    synchronize = torch.cuda.synchronize if device != "cpu" else lambda: None
    repeats = 10 if device != "cpu" else 1
    if device != "cpu":
        torch.cuda.set_device(device)
    work()
    synchronize()
    times, started = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - started < _SECONDS:
        before = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronize()
        times.append((time.perf_counter() - before) / repeats)
    return min(times) if device == "cpu" else statistics.median(times)


def _all_reduce(devices: list[str]) -> None:
    ranks = len(devices) if devices != ["cpu"] else min(RANKS_WITHOUT_GPU, len(os.sched_getaffinity(0)))
    if ranks < 2:
        _say(measure="all_reduce", skipped="one GPU" if devices != ["cpu"] else "one core")
        return
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as directory:
        answers = fork.SimpleQueue()
        store = Path(directory) / "store"
        children = [fork.Process(target=_rank, args=(rank, ranks, devices != ["cpu"], store, answers)) for rank in range(ranks)]
        for child in children:
            child.start()
        for child in children:
            child.join()
    if any(child.exitcode for child in children):
        _say(measure="all_reduce", failed=f"{sum(bool(child.exitcode) for child in children)} of {ranks} ranks failed")
    else:
        _say(measure="all_reduce", value=min(answers.get() for _ in children), where=f"{ranks} ranks")


def _rank(rank: int, ranks: int, gpus: bool, store: Path, answers: multiprocessing.SimpleQueue) -> None:
    """One rank: bus bandwidth, 2 (n - 1) / n x bytes / seconds (nccl-tests, doc/PERFORMANCE.md), in GB/s."""
    import torch.distributed as dist

    device = f"cuda:{rank}" if gpus else "cpu"
    if gpus:
        torch.cuda.set_device(device)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # by default gloo looks this host's name up, which many a laptop cannot
    dist.init_process_group("nccl" if gpus else "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks,
                            timeout=timedelta(seconds=60))
    data = torch.ones((1 << 28) if gpus else (1 << 22), device=device)
    dist.all_reduce(data)
    if not torch.equal(data[:8], torch.full((8,), float(ranks), device=device)):
        raise ArithmeticError("the sum of an all-reduce is wrong")
    times = []
    for _ in range(10):
        dist.barrier()
        data.fill_(1.0)
        if gpus:
            torch.cuda.synchronize()
        before = time.perf_counter()
        dist.all_reduce(data)
        if gpus:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - before)
    seconds = statistics.median(times) if gpus else min(times)
    answers.put(2 * (ranks - 1) / ranks * data.nbytes / seconds / 1e9)
    dist.destroy_process_group()


def _report(name: str, devices: list[str], rate: Callable[[str], float]) -> None:
    """The slowest device's figure: one straggler holds all others up."""
    rates: dict[str, float] = {}
    for device in devices:
        try:
            rates[device] = rate(device)
        except RuntimeError as error:  # out of memory, or a device that fails: the other figures are still wanted
            _say(measure=name, failed=f"{device}: {str(error).splitlines()[0][:200]}")
            return
        finally:
            if device != "cpu":
                torch.cuda.empty_cache()
    slowest = min(rates, key=rates.__getitem__)
    _say(measure=name, value=rates[slowest], where=f"slowest: {slowest}" if len(devices) > 1 else slowest)


def _say(**answer: object) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
