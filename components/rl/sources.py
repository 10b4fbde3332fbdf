"""Where the trainer gets its completions: from a generator in this process, in turn, or from workers beside it.

Both give step k completions that were begun with weights at most `staleness` optimizer steps old:

- 0: step k is drawn with the weights after k steps, in turn with training;
- 1: while the trainer takes step k, the workers draw step k + 1 with the weights after k steps. The result is the same at
  every run. With `in_flight` newer weights reach them between two tokens, and the rest of each completion is drawn with them, on top of the
  states and keys of the older ones; then timing shows in the result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch.distributed
from torch import Tensor

from components.rl.generator import Generator, Job
from components.rl.processes import Processes
from components.rl.ray_actors import Actors
from components.rl.rollouts import Draw, merge
from components.rl.workers import Workers
from stagecraft.contract.errors import UserError

Weights = dict[str, Tensor]
LAUNCHERS: dict[str, Callable[[Job, Weights], Workers]] = {"process": Processes, "ray": Actors}


class InTurn:
    """A generator in this process.

    Args:
        weights: those after `job.first` steps.
    """

    def __init__(self, job: Job, weights: Weights):
        self._generator = Generator(job)
        if job.first:
            self._generator.update(job.first, weights.items())
        else:
            self._generator.answer_heldout()

    def take(self, step: int) -> Draw:
        """The completions of a step."""
        return self._generator.draw(step)

    def finish(self, step: int) -> None:
        """Wait until the step after a checkpoint can be had again after a kill: it is drawn from the checkpoint's own weights."""

    def hand_over(self, version: int, weights: Weights) -> None:
        """The weights after `version` steps."""
        self._generator.update(version, weights.items())

    def close(self) -> None:
        """After the last step: have the held-out prompts answered, free the engine."""
        self._generator.answer_heldout()
        self._generator.close()


class Beside:
    """Workers that draw a share of each step; arguments as above. A step is there when all shares are. They end when this process does."""

    def __init__(self, job: Job, weights: Weights):
        self._params, self._workers = job.params, LAUNCHERS[job.params.generators.launcher](job, weights)
        self._done = [job.first - 2] * job.params.generators.count
        self._shares: dict[int, dict[int, Draw]] = defaultdict(dict)
        if job.params.curriculum.samples:
            self._wait(job.first - 1)  # the order of the prompts needs the tries of all
        self.hand_over(job.first, weights)

    def take(self, step: int) -> Draw:
        """The completions of a step, once they are there.

        Raises:
            UserError: a generator's, or it was lost.
        """
        self._wait(step)
        shares = self._shares.pop(step)
        return merge([shares[worker] for worker in range(len(shares))])

    def finish(self, step: int) -> None:
        """Wait until the step after a checkpoint is drawn, if that is done with older weights than the checkpoint's."""
        if self._params.staleness:
            self._wait(step)

    def hand_over(self, version: int, weights: Weights) -> None:
        """The weights after `version` steps."""
        self._workers.push(version, weights)

    def close(self) -> None:
        """After the last step: have the held-out prompts answered, end the workers."""
        self._wait(self._params.steps)
        self._workers.close()

    def _wait(self, step: int) -> None:
        while min(self._done) < step:
            worker, (kind, *content) = self._workers.hear()
            if kind == "lost":
                count = len(self._done)
                raise UserError(f"{'the generator' if count == 1 else f'generator {worker + 1} of {count}'} was lost ({content[0]})",
                                where="rl", mend="run the stage again: it goes on from its last checkpoint")
            if kind == "mistake":
                raise UserError(content[0], where=content[1], mend=content[2])
            if kind == "failure":
                raise RuntimeError(f"the generator failed:\n{content[0]}")
            self._done[worker], draw = content
            if draw:
                self._shares[self._done[worker]][worker] = draw


def source_of_completions(job: Job, weights: Weights) -> InTurn | Beside:
    """What the parameters ask for; one generator that takes turns with a trainer of one rank needs no process of its own."""
    asked = job.params.generators
    alone = asked.launcher == "process" and asked.count == torch.distributed.get_world_size() == 1
    return (InTurn if alone and not job.params.staleness else Beside)(job, weights)
