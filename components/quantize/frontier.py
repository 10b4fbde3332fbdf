"""The frontier: the divergence of checkpoints at many budgets, each put together from two uniform exports and the source.

An operator's stored weights, block scales and input scales do not depend on the formats of the others (calibration runs on
the unquantised model), so a checkpoint of any choice has each operator's tensors from the export that has them in that
format. `tests/quantize/test_search.py` finds the export of a choice equal to the checkpoint put together, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from components.quantize.decision import Point
from components.quantize.divergence import divergence_from
from components.quantize.exported import Exported, Stored
from components.quantize.formats import recipe_choice
from components.quantize.modelopt_search import modelopt_choice
from components.quantize.operators import module_of
from components.quantize.search import Problem


def compose(choice: Mapping[str, str], exports: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The tensors of the checkpoint with this choice.

    Args:
        choice: operator -> format.
        exports: format -> tensors of the checkpoint with this format everywhere; "bf16" is the source, whose operators are as
            they are. What belongs to no operator, and the scales of the KV cache, is as in the "nvfp4" export.
    """
    common = {name: tensor for name, tensor in exports["nvfp4"].items()
              if module_of(name) is None or name.endswith((".k_scale", ".v_scale"))}
    for fmt in set(choice.values()):
        common.update({name: tensor for name, tensor in exports[fmt].items()
                       if choice.get(module_of(name)) == fmt and not name.endswith((".k_scale", ".v_scale"))})
    return common


def budgets(problem: Problem, count: int) -> list[float]:
    """`count` budgets in what the programme counts in: evenly from the least possible to FP8 everywhere, and one half as much again."""
    least, (_, fp8) = problem.programme.cheapest(), problem.programme.totals(problem.everywhere("fp8"))
    return [*np.linspace(least * (1 + 1e-9), fp8, count - 1).tolist(), 1.5 * fp8]


class Frontier:
    """Measures choices, each once.

    Args:
        model: unquantised, overwritten by what is measured.
        reference: log-probabilities of the source on `windows`, float32 [N, T, V].
        windows: int64 [N, T], not calibrated on.
    """

    def __init__(self, problem: Problem, exports: Mapping[str, Stored], model: torch.nn.Module, reference: Tensor, windows: Tensor,
                 batch: int):
        self.problem, self.exports, self.exported = problem, exports, Exported(model)
        self.reference, self.windows, self.batch = reference, windows, batch
        self._known: dict[tuple[tuple[str, str], ...], float] = {}

    def point(self, series: str, choice: Mapping[str, str], budget: float | None = None) -> Point:
        """Bits and divergence of one choice."""
        key = tuple(sorted(choice.items()))
        if key not in self._known:
            model = self.exported.load(compose(choice, self.exports))
            self._known[key] = divergence_from(self.reference, model, self.windows, self.batch)
        scores = self.problem.scores
        estimate = sum(scores[name][fmt] for name, fmt in choice.items())
        return Point(series, self.problem.effective_bits(choice), estimate, self._known[key], budget)

    def points(self, wanted: list[float], on_point: Callable[[], None]) -> list[Point]:
        """Ours and ModelOpt's search at each budget, each format everywhere, both recipes; calls `on_point` 2 * len(wanted) + 4 times."""
        found = []
        for fmt in ("nvfp4", "fp8"):
            found.append(self.point(f"{fmt} everywhere", self.problem.everywhere(fmt)))
            on_point()
            found.append(self.point(f"{fmt} recipe", recipe_choice(fmt, self.problem.operators)))
            on_point()
        for budget in wanted:
            found.append(self.point("search", self.problem.programme.solve(budget), budget))
            on_point()
            theirs = modelopt_choice(self.problem.programme, budget)
            if theirs is not None:
                found.append(self.point("ModelOpt's search", theirs, budget))
            on_point()
        return found
