"""What a generation worker does, whoever launched it, and what trainer and worker say to each other."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor

from components.rl.generator import Generator, Job
from stagecraft.contract.errors import UserError
from stagecraft.contract.ranks import unranked


class Line(Protocol):
    """A worker's end of the line to the trainer."""

    def receive(self) -> tuple[int, Iterable[tuple[str, Tensor]]]:
        """The next version and its weights, in the order they were pushed; waits for it."""

    def waiting(self) -> bool:
        """A version is there that was not received."""

    def send(self, *message: Any) -> None:
        """("done", step, the share of it if there is one): so far all is kept; ("mistake", what, where, mend); ("failure", trace)."""


class Workers(Protocol):
    """The trainer's end of the lines to all workers."""

    def push(self, version: int, weights: dict[str, Tensor]) -> None:
        """Hand a version to every worker; a worker that is lost is told by `hear`."""

    def hear(self) -> tuple[int, tuple[Any, ...]]:
        """Wait for a worker's message, or ("lost", how): (which worker, what)."""

    def close(self) -> None:
        """End the workers."""


def work(line: Line, job: Job, worker: int) -> None:
    """Draw a share of step after step, each once weights are there that are at most `staleness` steps older; ends with an error only."""
    params = job.params
    for name in os.environ.keys() - unranked(os.environ).keys():
        del os.environ[name]
    try:
        generator = Generator(job, worker)
        line.send("done", job.first - 1, None)

        def receive() -> None:
            version, weights = line.receive()
            if version:  # 0 is what the engine has loaded
                generator.update(version, weights)

        receive()
        if not job.first:
            generator.answer_heldout()
        for step in range(job.first, params.steps):
            while generator.version < step - params.staleness:
                receive()
            between = (lambda: line.waiting() and receive()) if params.in_flight else None
            line.send("done", step, generator.draw(step, between))
        while generator.version < params.steps:
            receive()
        generator.answer_heldout()
        line.send("done", params.steps, None)
        while True:
            receive()
    except UserError as mistake:
        line.send("mistake", mistake.what, mistake.where, mistake.mend)
    except Exception:
        line.send("failure", traceback.format_exc())
