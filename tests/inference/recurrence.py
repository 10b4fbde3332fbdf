"""Mamba-2's convolution and recurrence token by token from their definitions, and small cases of a speculative step."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

SLOTS, HEADS, HEAD, STATE, WIDTH, CHANNELS = 12, 4, 32, 16, 4, 64


def convolution_case(lengths: tuple[int, ...] = (3, 1, 2), accepted: tuple[int, ...] = (2, 1, 3), drafts: int = 2) -> SimpleNamespace:
    g = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        x=torch.randn(sum(lengths), CHANNELS, generator=g), states=torch.randn(SLOTS, CHANNELS, WIDTH - 1 + drafts, generator=g),
        weight=torch.randn(CHANNELS, WIDTH, generator=g), bias=torch.randn(CHANNELS, generator=g),
        slots=torch.tensor([[3, 4, 5], [6, 7, 8], [9, 10, 11]], dtype=torch.int32)[:len(lengths)], starts=_starts(lengths),
        accepted=torch.tensor(accepted, dtype=torch.int32), lengths=lengths)


def reference_convolution(case: SimpleNamespace) -> tuple[Tensor, list[Tensor]]:
    """(outputs [tokens, channels], each sequence's stored inputs [channels, width - 2 + its tokens])"""
    out, stored = torch.empty_like(case.x), []
    for row, length in enumerate(case.lengths):
        first = int(case.accepted[row]) - 1
        past = case.states[int(case.slots[row, 0]), :, first:first + WIDTH - 1]
        inputs = torch.cat([past, case.x[int(case.starts[row]):int(case.starts[row]) + length].T], 1)
        for t in range(length):
            out[int(case.starts[row]) + t] = F.silu((inputs[:, t:t + WIDTH] * case.weight).sum(1) + case.bias)
        stored.append(inputs[:, 1:])
    return out, stored


def recurrence_case(lengths: tuple[int, ...] = (3, 1, 2), accepted: tuple[int, ...] = (2, 1, 3)) -> SimpleNamespace:
    g = torch.Generator().manual_seed(1)
    tokens = sum(lengths)
    per_head = {name: torch.rand(HEADS, generator=g) for name in ("A", "D", "dt_bias")}
    return SimpleNamespace(
        state=torch.randn(SLOTS, HEADS, HEAD, STATE, generator=g), x=torch.randn(tokens, HEADS, HEAD, generator=g),
        dt=torch.randn(tokens, HEADS, generator=g)[..., None].expand(-1, -1, HEAD),
        A=-(per_head["A"] + 0.1)[:, None, None].expand(-1, HEAD, STATE), D=per_head["D"][:, None].expand(-1, HEAD),
        dt_bias=per_head["dt_bias"][:, None].expand(-1, HEAD), B=torch.randn(tokens, 1, STATE, generator=g),
        C=torch.randn(tokens, 1, STATE, generator=g), starts=_starts(lengths), accepted=torch.tensor(accepted, dtype=torch.int32),
        slots=torch.tensor([[3, 4, 5], [6, 7, 8], [9, 10, 11]], dtype=torch.int32)[:len(lengths)], lengths=lengths)


def reference_recurrence(case: SimpleNamespace) -> tuple[Tensor, Tensor]:
    """(outputs [tokens, heads, head], states after every token in the slots they belong to)"""
    out, states = torch.empty_like(case.x), case.state.clone()
    for row, length in enumerate(case.lengths):
        h = case.state[int(case.slots[row, int(case.accepted[row]) - 1])].clone()
        for t in range(length):
            token = int(case.starts[row]) + t
            step = F.softplus(case.dt[token] + case.dt_bias)
            h = h * torch.exp(step[..., None] * case.A) + step[..., None] * case.x[token][..., None] * case.B[token][:, None, :]
            out[token] = (h * case.C[token][:, None, :]).sum(-1) + case.D * case.x[token]
            states[int(case.slots[row, t])] = h
    return out, states


def _starts(lengths: tuple[int, ...]) -> Tensor:
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32)
