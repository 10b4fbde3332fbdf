"""Causal self-attention by PyTorch's fused kernel; packed sequences do not see each other.

megatron-core's own DotProductAttention materialises the score matrix, and knows neither packing nor context parallelism; Transformer
Engine's does so too where flash-attn is not installed.
"""

from __future__ import annotations

from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

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
            if self.config.context_parallel_size > 1:
                out = self._attend_part(query, key, value)
            else:
                out = self._attend(*(t.permute(1, 2, 0, 3) for t in (query, key, value)))
            return out.permute(2, 0, 1, 3).flatten(2)
        layout = packed_seq_params.padded
        rows = [torch.cat([t, t.new_zeros(1, *t.shape[1:])])[layout].transpose(1, 2) for t in (query, key, value)]
        out = self._attend(*rows)  # sequences, heads, longest, d
        return out.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, packed_seq_params.unpadded)

    def _attend_part(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[s, b, heads, d] of this context-parallel rank -> [b, heads, s, d].

        It has chunk `rank` of the row and the one as far from its end, which see the keys of all chunks before them.
        Every rank gathers the keys and values of all (arXiv 2407.21783, section 3.3.2): of few heads, they are small beside the queries.
        """
        group = parallel_state.get_context_parallel_group()
        ranks, rank = group.size(), group.rank()
        keys_values = gather_from_sequence_parallel_region(torch.stack([key, value], 1), tensor_parallel_output_grad=True, group=group)
        places = [place for one in range(ranks) for place in (one, 2 * ranks - 1 - one)]
        chunks = dict(zip(places, keys_values.chunk(2 * ranks)))
        k, v = torch.cat([chunks[place] for place in range(2 * ranks)]).permute(1, 2, 3, 0, 4)
        size, out = len(query) // 2, []
        for place, q in zip((rank, 2 * ranks - 1 - rank), query.permute(1, 2, 0, 3).chunk(2, 2)):
            until = (place + 1) * size
            out.append(F.scaled_dot_product_attention(q, k[:, :, :until], v[:, :, :until], attn_mask=causal_lower_right(size, until),
                                                      scale=self.scale, enable_gqa=k.shape[1] != q.shape[1]))
        return torch.cat(out, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, enable_gqa=k.shape[1] != q.shape[1])
