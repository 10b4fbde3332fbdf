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
        if self.config.context_parallel_size > 1:
            key, value = self._whole_row(key, value)
            if packed_seq_params is None:
                return self._attend_part(query, key, value).permute(2, 0, 1, 3).flatten(2)
            return self._attend_stretches(query, key, value, packed_seq_params)
        if packed_seq_params is None:
            return self._attend(*(t.permute(1, 2, 0, 3) for t in (query, key, value))).permute(2, 0, 1, 3).flatten(2)
        layout = packed_seq_params.padded
        rows = [torch.cat([t, t.new_zeros(1, *t.shape[1:])])[layout].transpose(1, 2) for t in (query, key, value)]
        out = self._attend(*rows)  # sequences, heads, longest, d
        return out.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, packed_seq_params.unpadded)

    @staticmethod
    def _whole_row(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all context-parallel ranks in the row's order, tokens first.

        Every rank gathers all of them (arXiv 2407.21783, section 3.3.2): of few heads, they are small beside the queries.
        """
        group = parallel_state.get_context_parallel_group()
        ranks = group.size()
        gathered = gather_from_sequence_parallel_region(torch.stack([key, value], 1), tensor_parallel_output_grad=True, group=group)
        places = [place for one in range(ranks) for place in (one, 2 * ranks - 1 - one)]
        chunks = dict(zip(places, gathered.chunk(2 * ranks)))
        return torch.cat([chunks[place] for place in range(2 * ranks)]).unbind(1)

    def _attend_part(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[s, b, heads, d] of this context-parallel rank, keys and values of the whole row -> [b, heads, s, d].

        It has chunk `rank` of the row and the one as far from its end, which see the keys of all chunks before them.
        """
        group = parallel_state.get_context_parallel_group()
        ranks, rank = group.size(), group.rank()
        k, v = (t.permute(1, 2, 0, 3) for t in (key, value))
        size, out = len(query) // 2, []
        for place, q in zip((rank, 2 * ranks - 1 - rank), query.permute(1, 2, 0, 3).chunk(2, 2)):
            until = (place + 1) * size
            out.append(self._attend_last(q, k[:, :, :until], v[:, :, :until]))
        return torch.cat(out, 2)

    def _attend_stretches(self, query: Tensor, key: Tensor, value: Tensor, packed: Packed) -> Tensor:
        """[t, heads, d] of this context-parallel rank, keys and values of the whole row -> [t, heads * d]."""
        q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (query, key, value))
        out = [self._attend_last(q[:, :, first:end], k[:, :, start:until], v[:, :, start:until])
               for first, end, start, until in packed.stretches]
        return torch.cat(out, 2)[0].transpose(0, 1).flatten(1)

    def _attend_last(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries of the last of the keys' tokens."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(q.shape[2], k.shape[2]), scale=self.scale,
                                              enable_gqa=k.shape[1] != q.shape[1])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, enable_gqa=k.shape[1] != q.shape[1])
