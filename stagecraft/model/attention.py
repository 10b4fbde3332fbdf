"""Causal self-attention, by a C++ call or PyTorch's fused kernel; packed sequences do not see each other.

megatron-core's own DotProductAttention materialises the score matrix, and knows neither packing nor context parallelism; Transformer
Engine's does so too where flash-attn is not installed.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from stagecraft.model.attend import Stretch, attend, in_one_call
from stagecraft.model.packing import Packed

# Places per token up to which PyTorch's kernel gets a row's sequences at once, filled up to the longest; else one after the other.
FILLED_UP = 2
_WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class ScaledDotProductAttention(MegatronModule):
    """Core attention of the layer spec: grouped-query, causal, no positional encoding."""

    def __init__(self, config: Any, layer_number: int, attn_mask_type: Any, attention_type: str, softmax_scale: float | None = None,
                 **unused: Any):
        super().__init__(config)
        self.scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, *,
                packed_seq_params: Packed | None = None, **unused: Any) -> Tensor:
        """[s, b, heads, d] -> [s, b, heads * d]; packed: [t, heads, d] -> [t, heads * d]."""
        packed = packed_seq_params
        # cuDNN, which PyTorch tries first on Hopper and Blackwell, makes a plan for every size that it has not seen; packs bring new ones.
        with sdpa_kernel(_WITHOUT_PLANS) if packed is not None and query.is_cuda else nullcontext():
            return self._attend(query, key, value, packed)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, packed: Packed | None) -> Tensor:
        if self.config.context_parallel_size > 1:
            key, value = self._whole_row(key, value)
        elif packed is not None and not in_one_call(query) and packed.padded.numel() <= FILLED_UP * len(query):
            return self._attend_padded(query, key, value, packed)
        if packed is None:
            return attend(query, key, value, self.scale, self._stretches(len(query)))
        query, key, value = (t.unsqueeze(1) for t in (query, key, value))
        return attend(query, key, value, self.scale, packed.stretches).squeeze(1)

    def _attend_padded(self, query: Tensor, key: Tensor, value: Tensor, packed: Packed) -> Tensor:
        """All sequences at once, for PyTorch's kernel."""
        rows = [torch.cat([t, t.new_zeros(1, *t.shape[1:])])[packed.padded].transpose(0, 1) for t in (query, key, value)]
        longest = len(rows[0])
        out = attend(*rows, self.scale, [(0, longest, 0, longest)])  # longest, sequences, heads * d
        return out.transpose(0, 1).flatten(0, 1).index_select(0, packed.unpadded)

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

    def _stretches(self, tokens: int) -> list[Stretch]:
        """Of this rank's tokens of a row of one sequence, as in `Packed`.

        A context-parallel rank has chunk `rank` of the row and the one as far from its end, which see the keys of all chunks before them.
        """
        if self.config.context_parallel_size == 1:
            return [(0, tokens, 0, tokens)]
        group, size = parallel_state.get_context_parallel_group(), tokens // 2
        chunks = group.rank(), 2 * group.size() - 1 - group.rank()
        return [(at * size, (at + 1) * size, 0, (chunk + 1) * size) for at, chunk in enumerate(chunks)]
