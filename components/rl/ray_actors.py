"""Generation workers as actors of Ray, on this machine or a cluster: weights and finished shares go through its object store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from components.rl.generator import Job
from components.rl.workers import work
from stagecraft.contract import ray_cluster
from stagecraft.contract.errors import UserError

_Weights = dict[str, Tensor]


class Actors:
    """They end when this process does. All nodes must see the artifacts, and the work directory, where finished shares are kept.

    Raises:
        UserError: ray is missing, or the cluster has too few processors or GPUs for all workers.
    """

    def __init__(self, job: Job, weights: _Weights):
        self._ray = ray = ray_cluster.join("rl.generators.launcher", "process")
        count, tensor = job.params.generators.count, job.params.generators.tensor
        cpus, gpus = tensor * job.params.threads, tensor * int(torch.cuda.is_available())
        there = ray.cluster_resources()
        for kind, each in (("CPU", cpus), ("GPU", gpus)):
            if there.get(kind, 0) < count * each:
                raise UserError(f"{count} workers of {each} {kind} each do not fit into Ray's {there.get(kind, 0):g}",
                                where="rl.generators.count", mend="lower it or rl.threads, or add nodes")
        job = replace(job, corpus=job.corpus.resolve(), model=job.model.resolve(), kept=job.kept.resolve())
        # Pushes have a thread of their own: they come in order, also while `report` waits.
        kind = ray.remote(concurrency_groups={"pushes": 1})(_Actor).options(
            num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD")
        self._actors = [kind.remote(job, worker) for worker in range(count)]
        self._reports = [actor.report.remote() for actor in self._actors]

    def push(self, version: int, weights: _Weights) -> None:
        """Hand a version to every worker; a worker that is lost is told by `hear`."""
        stored = self._ray.put(weights)
        for actor in self._actors:
            actor.push.options(concurrency_group="pushes").remote(version, stored)

    def hear(self) -> tuple[int, tuple[Any, ...]]:
        """Wait for a worker's message, or ("lost", how): (which worker, what)."""
        (ready,), _ = self._ray.wait(self._reports, num_returns=1)
        worker = self._reports.index(ready)
        try:
            message = self._ray.get(ready)
        except self._ray.exceptions.RayActorError:
            return worker, ("lost", "its actor has died")
        self._reports[worker] = self._actors[worker].report.remote()
        return worker, message

    def close(self) -> None:
        """End the workers, and the cluster if it was started here."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._ray.shutdown()


class _Actor:
    """A worker and its end of the line."""

    def __init__(self, job: Job, worker: int):
        self._pushed: SimpleQueue[tuple[int, _Weights]] = SimpleQueue()
        self._said: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        Thread(target=work, args=(self, job, worker), daemon=True).start()

    def push(self, version: int, weights: _Weights) -> None:
        self._pushed.put((version, weights))

    def report(self) -> tuple[Any, ...]:
        return self._said.get()

    def receive(self) -> tuple[int, Iterable[tuple[str, Tensor]]]:
        version, weights = self._pushed.get()
        return version, weights.items()

    def waiting(self) -> bool:
        return not self._pushed.empty()

    def send(self, *message: Any) -> None:
        self._said.put(message)
