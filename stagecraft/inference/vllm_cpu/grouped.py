"""The arithmetic of squared-ReLU experts on plain tensors: three ways for few, middling and many tokens, one result."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Rounding = Callable[[Tensor, Tensor], Tensor]  # (rows, expert of each row) -> rows as the quantised operator sees them


def squared_relu_experts(output: Tensor, x: Tensor, w1: Tensor, w2: Tensor, shares: Tensor | None, chosen: Tensor,
                         round_first: Rounding | None = None, round_second: Rounding | None = None) -> None:
    """output[t] = sum over k of shares[t, k] * w2[e] @ relu(w1[e] @ x[t])^2 with e = chosen[t, k].

    Args:
        output: (tokens, latent), written to.
        x: (tokens, latent).
        w1: (experts, ffn, latent). w2: (experts, latent, ffn).
        shares: (tokens, k), or None where x was weighted already.
        chosen: (tokens, k) integers below `experts`.
        round_first, round_second: what happens to the inputs of the two products, None for nothing.
    """
    experts, (tokens, k) = w1.shape[0], chosen.shape
    flat = chosen.reshape(-1).long()
    if tokens * k <= experts:  # fewer rows than experts: fetch each row's matrices
        rows = x.repeat_interleave(k, 0) if k > 1 else x
        if round_first:
            rows = round_first(rows, flat)
        hidden = _squared_relu(torch.bmm(w1[flat], rows.unsqueeze(-1)).squeeze(-1))
        if round_second:
            hidden = round_second(hidden, flat)
        result = torch.bmm(w2[flat], hidden.unsqueeze(-1)).squeeze(-1).view(tokens, k, -1)
    else:
        order = flat.argsort(stable=True)
        expert = flat[order]
        counts = torch.bincount(flat, minlength=experts)
        rows = x[order // k] if k > 1 else x[order]
        if round_first:
            rows = round_first(rows, expert)
        sizes = counts.tolist()
        hidden = _squared_relu(_products(rows, w1, sizes))
        if round_second:
            hidden = round_second(hidden, expert)
        sorted_result = _products(hidden, w2, sizes)
        result = torch.empty_like(sorted_result)
        result[order] = sorted_result
        result = result.view(tokens, k, -1)
    if shares is None:
        torch.sum(result, 1, out=output)
    else:
        torch.bmm(shares.to(result.dtype).unsqueeze(1), result, out=output.unsqueeze(1))


def _squared_relu(x: Tensor) -> Tensor:
    return x.relu_().square_()


def _products(rows: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
    """rows, sorted by expert, times the transposed matrix of their expert."""
    result = rows.new_empty(rows.shape[0], weights.shape[1])
    begin = 0
    for expert, size in enumerate(sizes):
        if size:
            torch.mm(rows[begin:begin + size], weights[expert].t(), out=result[begin:begin + size])
            begin += size
    return result
