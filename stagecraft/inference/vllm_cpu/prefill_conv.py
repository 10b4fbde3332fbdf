"""The causal convolution of a prefill in one call for all sequences instead of one per sequence.

Not a defect of results but of time: model_executor/layers/mamba/ops/cpu/causal_conv1d.py:13 (`causal_conv1d_fn_cpu`) loops over
the sequences in Python, with two synchronising `.item()` calls and about ten tensor operations each: at 256 short prompts it is
a third of a rollout. Here every sequence is laid behind its own history in one row, so one convolution serves them all.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vllm.model_executor.layers.mamba import mamba_mixer2
from vllm.model_executor.layers.mamba.ops import causal_conv1d


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, conv_states: Tensor, query_start_loc: Tensor, cache_indices: Tensor,
             has_initial_state: Tensor | None = None, activation: str | None = "silu", **_: Any) -> Tensor:
    """Args: x [channels, tokens]; weight [channels, width]; conv_states [slots, channels, >= width - 1], updated in place.

    Returns:
        [channels, tokens]
    """
    history = weight.shape[1] - 1
    starts, slots = query_start_loc.long(), cache_indices.long()
    count, lengths = len(starts) - 1, starts[1:] - starts[:-1]
    sequence = torch.repeat_interleave(torch.arange(count), lengths)
    token_at = torch.arange(int(starts[-1])) + history * (sequence + 1)  # behind its own history and those before it
    past_at = (starts[:-1] + history * torch.arange(count))[:, None] + torch.arange(history)
    row = torch.zeros(x.shape[0], int(starts[-1]) + history * count, dtype=conv_states.dtype)
    row[:, token_at] = x[:, :int(starts[-1])].to(row.dtype)
    if has_initial_state is not None:
        known = has_initial_state.bool()
        row[:, past_at[known].flatten()] = conv_states[slots[known], :, :history].transpose(0, 1).flatten(1)
    y = F.conv1d(row.to(weight.dtype).unsqueeze(0), weight.unsqueeze(1), bias, groups=weight.shape[0])[0]
    y = y[:, token_at - history]
    last_at = (starts[1:] + history * torch.arange(count))[:, None] + torch.arange(history)
    alive = lengths > 0
    conv_states[slots[alive], :, :history] = row[:, last_at[alive].flatten()].unflatten(1, (-1, history)).transpose(0, 1)
    return (F.silu(y) if activation in ("silu", "swish") else y).to(x.dtype)


def mend() -> None:
    causal_conv1d.causal_conv1d_fn = mamba_mixer2.causal_conv1d_fn = convolve
