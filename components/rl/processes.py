"""Generation workers as processes of this machine: weights in shared memory, a pipe to each."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence
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
from stagecraft.contract.errors import UserError
from stagecraft.engine.launch import die_with_parent, local_world_size

_Weights = dict[str, Tensor]
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Processes:
    """They end when this process does.

    Weights lie in shared memory, one slot for odd and one for even versions: version v + 2 is written once step v + 1 was taken, and
    every share of that step was begun after version v had been read.

    Args:
        weights: any version, for their shapes.

    Raises:
        UserError: one worker takes more GPUs than there are.
    """

    def __init__(self, job: Job, weights: _Weights):
        asked = job.params.generators
        gpus = [own_gpus(worker, asked.tensor, _visible_gpus(), local_world_size()) for worker in range(asked.count)]
        context = torch.multiprocessing.get_context("spawn")
        self._slots = [{name: torch.empty_like(tensor).share_memory_() for name, tensor in weights.items()} for _ in range(2)]
        self._pipes, self._processes = [], []
        for worker in range(asked.count):
            pipe, other = context.Pipe()
            process = context.Process(target=_run, args=(other, self._slots, job, worker), daemon=True)
            _start(process, gpus[worker])
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


def _start(process: BaseProcess, gpus: Sequence[str]) -> None:
    """Start a worker that has, from its first import on, these GPUs and no ear for Ctrl-C: when the trainer ends, so does the worker.

    Its imports look for GPUs already, and CUDA looks at CUDA_VISIBLE_DEVICES once; this process has looked.
    """
    before, visible = signal.signal(signal.SIGINT, signal.SIG_IGN), os.environ.get(_VISIBLE)
    try:
        if gpus:
            os.environ[_VISIBLE] = ",".join(gpus)
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
        os.environ.pop(_VISIBLE, None)
        if visible is not None:
            os.environ[_VISIBLE] = visible


def own_gpus(worker: int, tensor: int, visible: Sequence[str], trainers: int) -> list[str]:
    """The GPUs of a worker: those after the trainer's ranks', each with one of its own; with too few for all, from the first again.

    Args:
        tensor: GPUs that divide its model.
        visible: the machine's, as CUDA_VISIBLE_DEVICES names them; none on a CPU.
        trainers: ranks of the trainer on this machine.

    Raises:
        UserError: more than there are.
    """
    if not visible:
        return []
    if tensor > len(visible):
        raise UserError(f"{tensor} GPUs divide a generator's model, and there are {len(visible)} here", where="rl.generators.tensor",
                        mend="lower it, or have the generators on other machines: launcher: ray")
    first = trainers + worker * tensor
    return [visible[(first + index) % len(visible)] for index in range(tensor)]


def _visible_gpus() -> list[str]:
    count = torch.cuda.device_count()
    return os.environ.get(_VISIBLE, ",".join(map(str, range(count)))).split(",")[:count]


def _run(pipe: Connection, slots: list[_Weights], job: Job, worker: int) -> None:
    die_with_parent()  # else one that hangs, or is amid a step, would keep its memory from the worker of the next attempt
    current_process()._config["daemon"] = False  # it ends with the trainer, and may have the children that divide its model
    with suppress(BrokenPipeError, ConnectionResetError):  # the trainer has ended: not even an error gets through
        work(_Pipe(pipe, slots), job, worker)
