"""Generation workers as processes of this machine: weights in shared memory, a pipe to each."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import current_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor

from components.rl.generator import Job
from components.rl.workers import work

_Weights = dict[str, Tensor]


class Processes:
    """They end when this process does.

    Weights lie in shared memory, one slot for odd and one for even versions: version v + 2 is written once step v + 1 was taken, and
    every share of that step was begun after version v had been read.

    Args:
        weights: any version, for their shapes.
    """

    def __init__(self, job: Job, weights: _Weights):
        context = torch.multiprocessing.get_context("spawn")
        self._slots = [{name: torch.empty_like(tensor).share_memory_() for name, tensor in weights.items()} for _ in range(2)]
        self._pipes, self._processes = [], []
        for worker in range(job.params.generators.count):
            pipe, other = context.Pipe()
            process = context.Process(target=_run, args=(other, self._slots, job, worker), daemon=True)
            _start(process)
            other.close()
            self._pipes.append(pipe)
            self._processes.append(process)

    def push(self, version: int, weights: _Weights) -> None:
        """Hand a version to every worker; a worker that is lost is told by `hear`."""
        for name, tensor in weights.items():
            self._slots[version % 2][name].copy_(tensor)
        for pipe in self._pipes:
            with suppress(BrokenPipeError, ConnectionResetError):
                pipe.send(version)

    def hear(self) -> tuple[int, tuple[Any, ...]]:
        """Wait for a worker's message, or ("lost", how): (which worker, what)."""
        worker = self._pipes.index(wait(self._pipes)[0])
        try:
            return worker, self._pipes[worker].recv()
        except (EOFError, ConnectionResetError):
            self._processes[worker].join()
            return worker, ("lost", f"exit code {self._processes[worker].exitcode}")

    def close(self) -> None:
        """End the workers."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=30)
            if process.is_alive():
                process.kill()
                process.join()


class _Pipe:
    """A worker's end."""

    def __init__(self, pipe: Connection, slots: list[_Weights]):
        self._pipe, self._slots = pipe, slots

    def receive(self) -> tuple[int, Iterable[tuple[str, Tensor]]]:
        version = self._pipe.recv()
        return version, self._slots[version % 2].items()

    def waiting(self) -> bool:
        return self._pipe.poll()

    def send(self, *message: Any) -> None:
        self._pipe.send(message)


def _start(process: BaseProcess) -> None:
    """Start a worker that ignores Ctrl-C, from its first import on: when the trainer ends, so does the worker."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)


def _run(pipe: Connection, slots: list[_Weights], job: Job, worker: int) -> None:
    current_process()._config["daemon"] = False  # it ends with the trainer, and may have the children that divide its model
    with suppress(BrokenPipeError, ConnectionResetError):  # the trainer has ended: not even an error gets through
        work(_Pipe(pipe, slots), job, worker)
