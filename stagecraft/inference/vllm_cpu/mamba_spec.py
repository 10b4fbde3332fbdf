"""Speculative decoding over Mamba-2 states: go on from the state after the last accepted token.

Verifying k drafts, vLLM runs k+1 tokens through a Mamba layer and keeps the state after each; the next step says how many were
accepted (`num_accepted_tokens`) and must go on from that state. On CPU neither half does so, silently:
  vllm/model_executor/layers/mamba/ops/cpu/causal_conv1d.py:90 `causal_conv1d_update_cpu` swallows num_accepted_tokens in **kwargs;
  vllm/model_executor/layers/mamba/ops/ssu_dispatch.py:431 `CPUSSUBackend` hands it to a C++ kernel whose states are wrong with it.
Both are replaced where num_accepted_tokens is given; without it upstream's kernels run.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def conv_update(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, slots: Tensor,
                accepted: Tensor, starts: Tensor) -> Tensor:
    """Causal depthwise convolution of the drafts of several requests, from the windows after their accepted tokens.

    Args:
        x: (tokens, channels), the requests one after the other.
        conv_state: (states, channels, width - 1 + drafts), updated in place: a window that slides by the accepted tokens.
        weight: (channels, width).
        slots: (requests,) state of each request. accepted: (requests,) at least 1. starts: (requests + 1,) offsets into x.

    Returns:
        (tokens, channels).
    """
    out = torch.empty_like(x)
    width = weight.shape[1]
    lengths = starts.diff()
    for length in lengths.unique().tolist():
        if length == 0:
            continue
        requests = (lengths == length).nonzero()[:, 0]
        states = slots[requests].long()
        window = (accepted[requests].long() - 1)[:, None] + torch.arange(width - 1)
        history = conv_state[states].gather(2, window[:, None].expand(-1, conv_state.shape[1], -1))
        tokens = starts[requests].long()[:, None] + torch.arange(length)
        inputs = torch.cat([history, x[tokens].transpose(1, 2).to(conv_state.dtype)], -1)
        result = F.conv1d(inputs.to(weight.dtype), weight.unsqueeze(1), bias, groups=weight.shape[0])
        if activation in ("silu", "swish"):
            result = F.silu(result)
        out[tokens] = result.transpose(1, 2).to(out.dtype)
        conv_state[states, :, : width - 2 + length] = inputs[:, :, 1:]
    return out


def state_update(kernel: Any, state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
                 z: Tensor | None, dt_bias: Tensor | None, dt_softplus: bool, source: Tensor, target: Tensor, null_block: int,
                 out: Tensor, accepted: Tensor, starts: Tensor) -> None:
    """Selective state update of the drafts of several requests, one token of each at a time.

    Args:
        kernel: upstream's update of one token a request.
        state: (states, heads, head size, state size), updated in place.
        x, dt: (tokens, heads, head size). A: (heads, head size, state size). B, C: (tokens, groups, state size).
        source, target: (requests, 1 + drafts) states to read and to write.
        accepted: (requests,) at least 1. starts: (requests + 1,).
        out: (tokens, heads, head size), written to.
    """
    lengths = starts.diff()
    before = source.gather(1, (accepted.long() - 1)[:, None])[:, 0]
    for place in range(int(lengths.max())):
        requests = (lengths > place).nonzero()[:, 0]
        tokens = (starts[requests] + place).long()
        after = target[requests, place]
        state[after.long()] = state[before[requests].long()]
        index = after.to(torch.int32)[:, None].contiguous()
        part = torch.empty((len(tokens), *out.shape[1:]), dtype=out.dtype)
        # The kernel wants dt broadcast over the head, as MambaMixer2 hands it over.
        kernel(state, x[tokens], dt[tokens, :, :1].expand(-1, -1, x.shape[-1]), A, B[tokens], C[tokens], D,
               None if z is None else z[tokens], dt_bias, dt_softplus, index, index, null_block, part, None, None)
        out[tokens] = part
        before[requests] = after


def patch() -> None:
    """Replace both updates wherever Mamba-2 layers look them up."""
    from vllm.model_executor.layers.mamba import mamba_mixer2
    from vllm.model_executor.layers.mamba.ops.ssu_dispatch import CPUSSUBackend

    upstream_conv, upstream_update = mamba_mixer2.causal_conv1d_update, CPUSSUBackend.__call__

    def conv(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: bool | str | None = None,
             conv_state_indices: Tensor | None = None, query_start_loc: Tensor | None = None,
             num_accepted_tokens: Tensor | None = None, **rest: Any) -> Tensor:
        if num_accepted_tokens is None:
            return upstream_conv(x, conv_state, weight, bias, activation, conv_state_indices, query_start_loc, **rest)
        slots = conv_state_indices[:, 0] if conv_state_indices.dim() > 1 else conv_state_indices
        activation = ("silu" if activation else None) if isinstance(activation, bool) else activation
        return conv_update(x, conv_state, weight, bias, activation, slots, num_accepted_tokens, query_start_loc)

    def update(self: Any, state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor,
               z: Tensor | None = None, dt_softplus: bool = False, state_batch_indices: Tensor | None = None,
               dst_state_batch_indices: Tensor | None = None, null_block_id: int = 0, out: Tensor | None = None,
               num_accepted_tokens: Tensor | None = None, cu_seqlens: Tensor | None = None, is_blackwell: bool = False) -> None:
        if num_accepted_tokens is None:
            upstream_update(self, state, x, dt, A, B, C, D, dt_bias, z, dt_softplus, state_batch_indices, dst_state_batch_indices,
                            null_block_id, out, None, cu_seqlens, is_blackwell)
        else:
            state_update(self._cpp_kernel, state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices,
                         dst_state_batch_indices, null_block_id, out, num_accepted_tokens, cu_seqlens)

    mamba_mixer2.causal_conv1d_update = conv
    CPUSSUBackend.__call__ = update
