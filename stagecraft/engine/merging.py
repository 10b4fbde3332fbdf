"""Checkpoint merging: a weighted mean over a sliding window of weights, with coefficients that emulate the decay of the learning rate.

"WSM: decay-free learning rate schedule via checkpoint merging" (arXiv 2507.17634): a mean of weights along a path is the path walked with
smaller steps, so a mean of a run at a constant rate stands for a run whose rate decays. The window lies in files, not in memory:
it outlives a kill, and another layout reads it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import stagecraft.megatron_cpu  # noqa: F401

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stagecraft.engine import checkpoints
from stagecraft.engine.merge_params import Merging
from stagecraft.engine.replicas import Reader
from stagecraft.engine.together import together


def coefficients(count: int) -> list[float]:
    """Of `count` weights, the oldest first; they sum to one.

    With them the update from weight i to weight i + 1 counts 1 - sqrt(i / count): minus-sqrt decay over the window.
    """
    return [math.sqrt((at + 1) / count) - math.sqrt(at / count) for at in range(count)]


class Merger:
    """The window of a module's weights below `directory`. Every rank calls every method.

    Args:
        reach: steps that a run may go back to after a kill; so much longer than the window weights are kept.
        after: the step after which `look` sees every step.
        note: is told of weights that are missing.
        beat: called whenever weights were written or read, which takes long where they are many.
    """

    def __init__(self, merging: Merging, directory: Path, module: nn.Module, *, reach: int, after: int = 0,
                 note: Callable[[str], None] = lambda _: None, beat: Callable[[], None] = lambda: None):
        self.merging, self.directory, self.module, self.reach, self.after = merging, directory, module, reach, after
        self.note, self.beat, self.merged = note, beat, False
        self._reader = Reader()

    def look(self, step: int, heldout: Callable[[], float]) -> float | None:
        """After step `step`: keep its weights if it is one of the window's, and see what the merged ones are worth.

        Args:
            heldout: held-out loss of the module as it is.

        Returns:
            That of the merged weights; None if the step is none of the window's, or the window is not full.
        """
        if not self.merging.every or step % self.merging.every:
            return None
        checkpoints.save_weights(self._path(step), self.module)
        self.beat()
        if dist.get_rank() == 0:
            self._discard(step)
        if not (window := self._window(step)):
            return None
        with self._with(window):
            return heldout()

    def goes_on(self, step: int, heldout: Callable[[], float], last: float) -> float | None:
        """At the end, after step `step`: the held-out loss of the merged weights, which replace the module's if it is below `last` and
        that is asked for.

        None if there is no full window.
        """
        if not (window := self._window(step)):
            return None
        with self._with(window):
            loss = heldout()
        if loss < last and self.merging.use == "better":
            self._take(self._mean(window))
            self.merged = True
        return loss

    def _discard(self, step: int) -> None:
        """Remove weights that no window needs again after step `step`."""
        oldest = step - (self.merging.window - 1) * self.merging.every - self.reach
        for path in self.directory.glob("step-*"):
            if int(path.name.rpartition("-")[2]) < oldest:
                shutil.rmtree(path)

    @contextmanager
    def _with(self, window: list[Path]) -> Iterator[None]:
        """The module with the merged weights inside the block, with its own again after it."""
        own = {name: tensor.clone() for name, tensor in self._tensors().items()}
        self._take(self._mean(window))
        try:
            yield
        finally:
            self._take(own)

    def _mean(self, window: list[Path]) -> dict[str, Tensor]:
        mean = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in self._tensors().items()}
        for path, coefficient in zip(window, coefficients(len(window))):
            checkpoints.load_weights(path, self.module, self._reader)
            self.beat()
            for name, tensor in self._tensors().items():
                mean[name].add_(tensor.float(), alpha=coefficient)
        return mean

    def _window(self, step: int) -> list[Path]:
        """The newest window of step `step`, its oldest weights first; empty if some are missing, as at the beginning."""
        every = self.merging.every
        if not every:
            return []
        last = step - step % every
        steps = [last - back * every for back in reversed(range(self.merging.window))]
        first = dist.get_rank() == 0
        missing = together((lambda: [at for at in steps if not self._path(at).is_dir()]) if first else None)[0]
        if missing and steps[0] > self.after:
            self.note(f"no merged weights at step {step}: those of step {missing[0]} are gone from {self.directory}")
        return [] if missing else list(map(self._path, steps))

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def _tensors(self) -> dict[str, Tensor]:
        """Without what Transformer Engine's layers have besides: bytes, as many as their last forward pass had formats to describe."""
        return {name: tensor for name, tensor in self.module.state_dict().items()
                if torch.is_tensor(tensor) and not name.endswith("_extra_state")}

    @torch.no_grad()
    def _take(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self._tensors().items():
            tensor.copy_(tensors[name])
