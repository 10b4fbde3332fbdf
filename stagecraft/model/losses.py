"""What rounding loses while a model trains: elements flushed to zero and elements cut to the largest code, by layer and operand."""

from __future__ import annotations

from torch import Tensor

GRADIENTS = ("gradients", "gradients of weight gradients")
OPERANDS = ("activations", "weights", "gradients", "gradients of weight gradients", "activations of weight gradients")
COUNTS = ("nonzero", "flushed", "saturated")


class RoundingLosses:
    """Counts while `watching`: counts[layer, operand] is an int64 tensor of COUNTS, summed over what was seen."""

    def __init__(self) -> None:
        self.watching = False
        self.counts: dict[tuple[str, str], Tensor] = {}

    def watch(self, watching: bool) -> None:
        """Begin anew, or stop."""
        self.watching, self.counts = watching, {}

    def see(self, layer: str, operand: str, x: Tensor, rounded: Tensor, saturated: Tensor | int) -> None:
        """Count one tensor and its rounded values."""
        before = x.count_nonzero()
        counts = x.new_zeros(len(COUNTS), dtype=before.dtype)
        counts[0], counts[1], counts[2] = before, before - rounded.count_nonzero(), saturated
        key = (layer, operand)
        self.counts[key] = self.counts[key] + counts if key in self.counts else counts


LOSSES = RoundingLosses()
