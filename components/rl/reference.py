"""The model that reinforcement learning starts from, kept as it was: a KL term holds the policy near it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from stagecraft.checkpoint.convert import from_hf
from stagecraft.engine import parallel, whole
from stagecraft.engine.batch import Batch, whole_row
from stagecraft.engine.pipeline import through
from stagecraft.model.build import build_model, transformer_config
from stagecraft.model.config import Architecture
from stagecraft.model.vocabulary import losses


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
        """Write the reference's log-probability of every label, float32 [t], into the packs, on the last stage of the pipeline."""
        for batch, logprobs in zip(batches, through(self._module, batches, self._logprobs, forward_only=True, collect=True)):
            batch.extra.reference_logprobs = logprobs

    def _logprobs(self, batch: Batch, module: nn.Module) -> tuple[Tensor, Callable[..., Tensor]]:
        output = module(batch.tokens, torch.zeros_like(batch.tokens), None, packed_seq_params=batch.packed)

        def of_labels(logits: Tensor, **collected: bool) -> Tensor:
            return whole_row(-losses(logits[0].float() / self._temperature, batch.labels[0]))

        return output, of_labels
