"""The model that reinforcement learning starts from, kept as it was: a KL term holds the policy near it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from components.rl.params import Stage
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
        params: say the dtype, the longest row and the temperature of the distributions compared.
    """

    def __init__(self, architecture: Architecture, weights: Mapping[str, Tensor], params: Stage):
        config = transformer_config(architecture, dtype=getattr(torch, params.dtype), expert_bias_rate=0.0, aux_loss=0.0,
                                    **parallel.sizes())
        self._temperature = params.temperature
        self._module = build_model(architecture, config, params.pack_tokens).to(torch.cuda.current_device()).eval()
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
