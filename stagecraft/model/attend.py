"""Causal attention of stretches of tokens: in one C++ call for float32 on CPUs (`attend.cpp`), by PyTorch's fused kernel elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_float, c_int64
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from stagecraft.model.loops import in_one_call, library
from stagecraft.native import at

Stretch = tuple[int, int, int, int]


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None, stretches: Sequence[Stretch]) -> Tensor:
    """Grouped-query attention without positions: softmax(scale q k^T) v of every stretch.

    Args:
        query: [t, b, heads, d].
        key, value: [T, b, groups, d].
        scale: of the scores; d^-1/2 if None.
        stretches: (first, end) of queries and (first, end) of the keys that the last of them sees; each before it sees one less.
            Together they have every query once, in order.

    Returns [t, b, heads * d].
    """
    if in_one_call(query) and query.dtype == key.dtype == value.dtype:
        return _Attend.apply(query, key, value, scale, stretches)
    q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
    parts = [F.scaled_dot_product_attention(q[:, :, first:end], k[:, :, start:until], v[:, :, start:until], scale=scale,
                                            attn_mask=causal_lower_right(end - first, until - start),
                                            enable_gqa=k.shape[1] != q.shape[1]) for first, end, start, until in stretches]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 2)).permute(2, 0, 1, 3).flatten(2)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None, stretches: Sequence[Stretch]) -> Tensor:
        query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
        (tokens, batch, heads, size), groups = query.shape, key.shape[2]
        ctx.settings = ((c_int64 * 5)(batch, heads, groups, size, len(stretches)),
                        (c_int64 * (4 * len(stretches)))(*chain.from_iterable(stretches)),
                        c_float(size**-0.5 if scale is None else scale))
        out, sums = query.new_empty(tokens, batch, heads, size), query.new_empty(batch, heads, tokens)
        library().attend_forward(*ctx.settings, *_views(query, key, value), c_int64(tokens), at(out), at(sums))
        ctx.save_for_backward(query, key, value, out, sums)
        return out.flatten(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        gradients = [query.new_empty(query.shape), key.new_zeros(key.shape), value.new_zeros(value.shape)]
        library().attend_backward(*ctx.settings, *_views(query, key, value), c_int64(len(query)),
                                  *map(at, (out, sums, grad.contiguous(), *gradients)))
        return *gradients, None, None


def _views(*tensors: Tensor) -> list[Any]:
    """Where each lies, and the strides of all dimensions but the last."""
    return [argument for tensor in tensors for argument in (at(tensor), (c_int64 * 3)(*tensor.stride()[:3]))]
