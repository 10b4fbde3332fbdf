"""The search for the NVFP4 checkpoint: sensitivities from ModelOpt, costs from the shapes, the choice from an integer programme."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from components.quantize.operators import BYTES, FORMATS, Header, Operator, find_operators, module_of, stored_bits, tie
from components.quantize.programme import Programme
from components.quantize.roofline import seconds

if TYPE_CHECKING:
    from components.quantize.params import Search


@dataclass(frozen=True)
class Problem:
    """What a search on one checkpoint chooses from.

    Attributes:
        operators: that are searched.
        programme: costs in effective bits, so that a budget is in effective bits.
        scores: operator -> format -> nats per token.
        counted: parameters that the effective bits are per.
        constant: bits of what is counted and not searched.
    """

    operators: list[Operator]
    programme: Programme
    scores: Mapping[str, Mapping[str, float]]
    counted: int
    constant: int

    def effective_bits(self, choice: Mapping[str, str]) -> float:
        """Bits per counted parameter that a checkpoint with this choice takes, by the sizes of its tensors."""
        return (self.constant + sum(operator.bits(choice[operator.name]) for operator in self.operators)) / self.counted

    def everywhere(self, fmt: str) -> dict[str, str]:
        """One format for all."""
        return {operator.name: fmt for operator in self.operators}


def pose(header: Header, config: dict[str, Any], scores: Mapping[str, Mapping[str, float]], search: Search) -> Problem:
    """The integer programme of a checkpoint.

    Bits: what the tensors take on disk, scales included, per parameter. Time: the roofline's seconds of one decoding step, in
    units in which the same operators in BF16 take 16, so that a budget of 4.75 asks for 4.75 / 16 of their time.

    Args:
        header: of the source checkpoint.
        config: its config.json.
        scores: as `modelopt_search.sensitivities` returns them.
    """
    operators = find_operators(header)
    formats = [fmt for fmt in FORMATS if fmt in search.formats]
    searched = sum(operator.numel for operator in operators)
    counted, constant = searched, 0
    if search.excluded == "count":
        counted = sum(prod(shape) for _, shape in header.values())
        constant = stored_bits(header) - stored_bits(header, [operator.name for operator in operators])
        constant += 2 * 32 * sum(operator.family == "k_proj" for operator in operators)  # scales of the KV cache
    if search.cost == "bits":
        costs, fixed = np.array([[operator.bits(fmt) for fmt in formats] for operator in operators], float), float(constant)
        unit = 1 / counted
    else:
        def time(operator: Operator, fmt: str) -> float:
            return seconds(operator, fmt, search.gpu, search.tokens, config)

        others = _others(header) if search.excluded == "count" else []
        costs, fixed = np.array([[time(operator, fmt) for fmt in formats] for operator in operators]), sum(time(o, "bf16") for o in others)
        unit = 16 / sum(time(replace(operator, stored_bits=16), "bf16") for operator in [*operators, *others])
    names = [operator.name for operator in operators]
    programme = Programme(names, formats, np.array([[scores[name][fmt] for fmt in formats] for name in names]), costs * unit,
                          [tie(name) for name in names], fixed * unit)
    return Problem(operators, programme, scores, counted, constant)


def summary(problem: Problem, choice: Mapping[str, str]) -> dict[str, float]:
    """Metrics of a choice: its sensitivity in nats per token, and how many operators have each format."""
    formats = Counter(choice.values())
    return {"search_sensitivity": problem.programme.totals(choice)[0],
            **{f"search_operators_{fmt}": formats[fmt] for fmt in FORMATS}}


def _others(header: Header) -> list[Operator]:
    """Products of a decoding step that no search touches: head, router, convolution. The embedding is looked up, MTP drafts."""
    return [Operator(name.removesuffix(".weight"), -1, "other", ((shape[0], prod(shape[1:])),), 8 * BYTES[dtype])
            for name, (dtype, shape) in header.items()
            if len(shape) > 1 and module_of(name) is None and not name.startswith(("mtp.", "backbone.embeddings."))]
