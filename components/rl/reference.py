"""The model that reinforcement learning starts from, kept as it was: a KL term holds the policy near it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stagecraft.checkpoint.convert import from_hf
from stagecraft.engine import parallel, whole
from stagecraft.engine.trainer import Batch
from stagecraft.model.build import build_model, transformer_config
from stagecraft.model.config import Architecture


class Reference:
    """A frozen model beside the trainer's.

    Args:
        weights: canonical tensors.
        temperature: of the distributions compared.
    """

    def __init__(self, architecture: Architecture, weights: Mapping[str, Tensor], max_sequence_length: int, temperature: float):
        config = transformer_config(architecture, **parallel.sizes(), expert_bias_rate=0.0, aux_loss=0.0)
        self._module, self._temperature = build_model(architecture, config, max_sequence_length).eval(), temperature
        whole.scatter(self._module, architecture, from_hf(architecture, weights, mtp=False))

    @torch.no_grad()
    def attach(self, batches: Sequence[Batch]) -> None:
        """Write the reference's log-probability of every label, float32 [t], into the packs."""
        for batch in batches:
            logits = self._module(batch.tokens, torch.zeros_like(batch.tokens), None, packed_seq_params=batch.packed)
            distribution = (logits[0].float() / self._temperature).log_softmax(-1)
            batch.extra.reference_logprobs = distribution.gather(1, batch.labels[0, :, None]).squeeze(1)
