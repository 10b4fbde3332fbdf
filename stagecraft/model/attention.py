"""Causal self-attention by PyTorch's fused kernel, for hosts without Transformer Engine; packed sequences do not see each other.

megatron-core's own DotProductAttention materialises the score matrix and knows no packing.
"""

from __future__ import annotations

from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from stagecraft.model.packing import Packed


class ScaledDotProductAttention(MegatronModule):
    """Core attention of the layer spec: grouped-query, causal, no positional encoding."""

    def __init__(self, config: Any, layer_number: int, attn_mask_type: Any, attention_type: str, softmax_scale: float | None = None,
                 **unused: Any):
        super().__init__(config)
        self.scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, *,
                packed_seq_params: Packed | None = None, **unused: Any) -> Tensor:
        """[s, b, heads, d] -> [s, b, heads * d]; packed: [t, heads, d] -> [t, heads * d]."""
        if packed_seq_params is None:
            out = self._attend(*(t.permute(1, 2, 0, 3) for t in (query, key, value)))
            return out.permute(2, 0, 1, 3).flatten(2)
        if not isinstance(packed_seq_params, Packed):
            raise TypeError("packed sequences come as stagecraft.model.packing.Packed: their boundaries would be lost otherwise")
        layout = packed_seq_params.padded
        rows = [torch.cat([t, t.new_zeros(1, *t.shape[1:])])[layout].transpose(1, 2) for t in (query, key, value)]
        out = self._attend(*rows)  # sequences, heads, longest, d
        return out.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, packed_seq_params.unpadded)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, enable_gqa=k.shape[1] != q.shape[1])
