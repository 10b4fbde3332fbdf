"""The loss of multi-token prediction, weighed by the targets of the whole step.

megatron-core's own weighs a target by the counts of the microbatch and the context-parallel rank that it lies in, so that the gradient
depends on what a sequence is packed with: there a depth has one target fewer for every sequence, and the share of these differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stagecraft.megatron_cpu import bind_packed_rows

import torch
from megatron.core.models.hybrid import hybrid_model
from megatron.core.transformer import TransformerConfig, multi_token_prediction
from megatron.core.transformer.multi_token_prediction import MTPLossAutoScaler
from torch import Tensor

from stagecraft.model.packing import Packed
from stagecraft.model.vocabulary import likeliest

_roll_row = multi_token_prediction.roll_tensor


class Depths:
    """What the engine and the loss tell each other, by depth: the weight of a target, and the sums of the losses since `begin`.

    Attributes:
        agreed: where it is a list, gets for every depth bool [b * s]: the likeliest token is the label.
    """

    def __init__(self, depths: int):
        self.agreed: list[Tensor] | None = None
        self.begin([1.0] * depths)

    def begin(self, weights: list[float]) -> None:
        """A new step."""
        self.weights = weights
        self.sums: list[Tensor | float] = [0.0] * len(weights)


def roll(tensor: Tensor | None, shifts: int = -1, dims: int = -1, cp_group: Any = None,
         packed_seq_params: Packed | None = None) -> tuple[Tensor | None, Tensor | None]:
    """In the place of megatron-core's `roll_tensor`: every token's successor in its sequence, 0 behind the last, and the sum of them."""
    rolled, total = _roll_row(tensor, shifts, dims, cp_group)
    if rolled is None or packed_seq_params is None:
        return rolled, total
    rolled = rolled.masked_fill(packed_seq_params.last, 0)
    return rolled, rolled.sum()


def counts(loss_mask: Tensor, packed: Packed | None, depths: int) -> Tensor:
    """[1 + depths] float64: a microbatch's sums of the loss mask for the next token and for what each depth predicts."""
    found = [loss_mask.sum()]
    for _ in range(depths):
        loss_mask, count = roll(loss_mask, shifts=-1, dims=-1, packed_seq_params=packed)
        found.append(count)
    return torch.stack(found).double()


def add_losses(*, hidden_states: Tensor, labels: Tensor | None, loss_mask: Tensor | None, output_layer: Callable[..., Any],
               output_weight: Tensor | None, runtime_gather_output: bool | None, compute_language_model_loss: Callable[..., Tensor],
               config: TransformerConfig, cp_group: Any, packed_seq_params: Packed | None, **unused: Any) -> Tensor:
    """In the place of megatron-core's `process_mtp_loss`: the backbone's states; the depths' losses hang on them, if there are labels."""
    states, *further = hidden_states.chunk(1 + config.mtp_num_layers)
    if labels is None:
        return states
    if loss_mask is None:
        loss_mask = torch.ones_like(labels)
    for depth, ahead in enumerate(further):
        logits, _ = output_layer(ahead, weight=output_weight, runtime_gather_output=runtime_gather_output)
        labels, _ = roll(labels, shifts=-1, dims=-1, cp_group=cp_group, packed_seq_params=packed_seq_params)
        loss_mask, _ = roll(loss_mask, shifts=-1, dims=-1, cp_group=cp_group, packed_seq_params=packed_seq_params)
        if config.mtp.agreed is not None:
            config.mtp.agreed.append(likeliest(logits.flatten(0, 1)) == labels.t().flatten())
        losses = loss_mask * compute_language_model_loss(labels, logits)
        config.mtp.sums[depth] = config.mtp.sums[depth] + losses.detach().sum().double()
        weight = config.mtp.weights[depth] * config.mtp_loss_scaling_factor / config.mtp_num_layers
        states = MTPLossAutoScaler.apply(states, weight * losses)
    return states


hybrid_model.process_mtp_loss = add_losses
bind_packed_rows(roll=roll)
