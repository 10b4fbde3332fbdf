"""How a model is divided over ranks, and what makes a division impossible: told before any work."""

from __future__ import annotations

from typing import Literal

from stagecraft.contract.bounded import Positive
from stagecraft.contract.division import multiple, refusals
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import params
from stagecraft.model.config import Architecture


def divide(parts: int, ranks: int, where: str) -> int:
    """How many of a step's `parts` (its microbatches) each of `ranks` data-parallel ranks gets.

    Raises:
        UserError: they cannot be divided evenly.
    """
    if parts % ranks:
        raise UserError(f"{parts} microbatches per step cannot be split evenly over {ranks} data-parallel ranks", where=where,
                        mend=f"use a number of data-parallel ranks that divides {parts}, or a number of microbatches that {ranks} divides")
    return parts // ranks


@params
class Layout:
    """Sizes of the groups that divide the model; the ranks that are left over are data parallel.

    Args:
        tensor: of every matrix, and of the sequence between them (sequence parallelism goes with it).
        pipeline: of the layers; MTP and head lie on the last stage.
        context: of the tokens of a row, between the ranks that work on it together.
        expert: of the routed experts. Experts are not divided further: their tensor parallelism is 1.
        recompute: which layers keep only their input for the backward pass, which computes the rest again: "none", "moe", or "full" for
            all. It takes time for memory, and changes no bit, but for the order in which a block's gradients of several MTP depths are
            added.
    """

    tensor: Positive
    pipeline: Positive
    context: Positive
    expert: Positive
    recompute: Literal["none", "moe", "full"] = "none"

    @property
    def model(self) -> int:
        """Ranks that work on the same rows."""
        return self.tensor * self.pipeline * self.context

    @property
    def multiple(self) -> int:
        """The tokens of a row are a multiple of this."""
        return multiple(self.tensor, self.context)

    def data(self, ranks: int, where: str = "layout") -> int:
        """Data-parallel ranks out of `ranks`.

        Raises:
            UserError: the layout, which the profile names as `where`, does not divide them.
        """
        if ranks % self.model:
            raise UserError(f"{ranks} ranks cannot be divided into tensor {self.tensor} x pipeline {self.pipeline} x context "
                            f"{self.context}", where=where, mend=f"start a multiple of {self.model} ranks, or divide the model by less")
        if (ranks // self.pipeline) % self.expert:
            raise UserError(f"the {ranks // self.pipeline} ranks of a pipeline stage cannot be divided into expert {self.expert}",
                            where=f"{where}.expert", mend="choose a divisor")
        return ranks // self.model

    def check(self, a: Architecture, tokens: int, optimizer: str, where: str = "layout") -> None:
        """Refuse what this architecture, in rows of `tokens`, cannot be divided into.

        Args:
            where: the layout's name in the profile.

        Raises:
            ValueError: a size that does not divide, or a combination that nothing computes.
        """
        for problem in refusals(a, tokens, optimizer, tensor=self.tensor, pipeline=self.pipeline, context=self.context, expert=self.expert,
                                where=where):
            raise ValueError(problem)
