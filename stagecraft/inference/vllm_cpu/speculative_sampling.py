"""Speculative decoding at a temperature: give every draft the temperature of its request, and bear a step without a draft.

Upstream: vllm/utils/cpu_triton_utils.py:390 (`_expand_kernel_impl`) writes through `_ensure_int64`, which copies: the float
temperatures are cut to integers and written to a copy, and the caller (v1/sample/rejection_sampler.py:581) goes on with
uninitialised memory. Logits are then divided by whatever lay there: wrong tokens, NaN log-probabilities, no two runs alike.

v1/sample/ops/topk_topp_sampler.py:529 takes the largest `top_k` of the drafts, of which the first step of a request has none: one
request that gives `top_k` and no `top_p` ended the engine.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.v1.sample import rejection_sampler
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p


def expand(x: Tensor, ends: Tensor, total: int, replace_from: int = 0, replace_to: int = 0) -> Tensor:
    """Repeat x[i] for every token of request i.

    Args:
        x: (requests,). ends: (requests,) cumulated numbers of tokens. total: number of all tokens.
        replace_from, replace_to: a value of x to be replaced and by what.
    """
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    return torch.where(x == replace_from, replace_to, x).to(x.dtype).repeat_interleave(counts, output_size=total)


def limit(logits: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> Tensor:
    """As vLLM does where there are logits (drafts, vocabulary); where there is no draft there is nothing to limit."""
    return apply_top_k_top_p(logits, top_k, top_p) if len(logits) else logits


def mend() -> None:
    rejection_sampler.expand_batch_to_tokens = expand
    rejection_sampler.apply_top_k_top_p = limit
