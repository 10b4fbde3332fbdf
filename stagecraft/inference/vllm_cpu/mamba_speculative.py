"""Mamba-2 states under speculative decoding (MTP) on a CPU.

A verification step runs 1 + k tokens of which only some are accepted, so the next step must go on from the state after the last
accepted one. Upstream: model_executor/layers/mamba/ops/cpu/causal_conv1d.py:88 (`causal_conv1d_update_cpu`) takes
`num_accepted_tokens` in its **kwargs and drops it, and the C++ `selective_state_update_cpu` behind
ops/ssu_dispatch.py:`CPUSSUBackend` computes wrong states when it is given. Both give wrong tokens without any error.

Layouts (as the CUDA kernels have them): slots [B, 1 + k], the state after token t of this step is written to slot t, the state to
start from lies in slot (accepted tokens of the last step) - 1; a convolution state holds width - 1 + k inputs, the history starts
at column accepted - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_int64
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vllm.model_executor.layers.mamba import mamba_mixer2
from vllm.model_executor.layers.mamba.ops import causal_conv1d, ssu_dispatch
from vllm.model_executor.layers.mamba.ops.cpu import mamba_ssm

from stagecraft.inference.vllm_cpu.loops import library
from stagecraft.native import at


def convolve(x: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, slots: Tensor, starts: Tensor,
             accepted: Tensor) -> Tensor:
    """Causal convolution of each sequence's new tokens, from the history its accepted tokens end in.

    Args:
        x: [tokens, channels], the sequences one after another.
        states: [slots, channels, width - 1 + k], updated in place.
        weight: [channels, width]; bias: [channels].
        slots: [B] or [B, 1 + k] (the first column counts); starts: [B + 1] offsets into `x`; accepted: [B], at least 1.

    Returns:
        [tokens, channels]
    """
    if library() is not None and x.stride(1) == 1 and _float32(x, states, weight, bias):
        out, rows = torch.empty_like(x, memory_format=torch.contiguous_format), slots if slots.dim() > 1 else slots[:, None]
        sizes = (c_int64 * 9)(*rows.shape, *weight.shape, activation in ("silu", "swish"), x.stride(0), *states.stride())
        tensors = (x, states, weight.t().contiguous(), bias, *indices(rows, starts, accepted), out)  # held until the call returns
        library().convolve(sizes, *map(at, tensors))
        return out
    lengths = starts[1:] - starts[:-1]
    alive = lengths > 0
    slot = (slots[:, 0] if slots.dim() > 1 else slots)[alive].long()
    first, length, history = starts[:-1][alive].long(), lengths[alive].long(), weight.shape[1] - 1
    longest = int(length.max())
    columns = (accepted[alive].long() - 1)[:, None] + torch.arange(history)
    past = states[slot].gather(2, columns[:, None, :].expand(-1, states.shape[1], -1))
    step = torch.arange(longest)
    index = first[:, None] + torch.minimum(step, length[:, None] - 1)  # short sequences repeat their last token: never read
    window = torch.cat([past, x[index].transpose(1, 2).to(states.dtype)], -1)
    y = F.conv1d(window.to(weight.dtype), weight.unsqueeze(1), bias, groups=weight.shape[0]).transpose(1, 2)
    if activation in ("silu", "swish"):
        y = F.silu(y)
    out = torch.empty_like(x)
    real = step < length[:, None]
    out[index[real]] = y[real].to(out.dtype)
    states[slot, :, :history - 1 + longest] = window[:, :, 1:]
    return out


def update_states(kernel: Callable[..., None], state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
                  dt_bias: Tensor, softplus: bool, slots: Tensor, starts: Tensor, accepted: Tensor, out: Tensor) -> None:
    """One step of the state-space recurrence per token position, each with the upstream kernel for a single token.

    Shapes as `selective_state_update` has them: state [slots, heads, head, N], x and out [tokens, heads, head].
    """
    heads_are_rows = all(tensor.stride(1) == x.shape[2] and tensor.stride(2) == 1 for tensor in (x, out)) and state[0].is_contiguous()
    if library() is not None and heads_are_rows and _float32(state, x, dt, A, B, C, D, dt_bias, out):
        sizes = (c_int64 * 16)(*slots.shape, *x.shape[1:], *B.shape[1:], softplus, state.stride(0),
                               *(tensor.stride(0) for tensor in (x, dt, B, C, out, A, D, dt_bias)))
        tensors = (state, x, dt, A, B, C, D, dt_bias, *indices(slots, starts, accepted), out)
        library().recur(sizes, *map(at, tensors))
        return
    lengths = starts[1:] - starts[:-1]
    source = slots.gather(1, (accepted.long() - 1)[:, None])[:, 0].long()
    for position in range(int(lengths.max())):
        row = (lengths > position).nonzero()[:, 0]
        token = (starts[:-1][row] + position).long()
        target = slots[row, position:position + 1].contiguous()
        state[target[:, 0].long()] = state[source[row]]
        given = x[token]
        y = torch.empty_like(given)
        kernel(state, given, dt[token][..., :1].expand(-1, -1, x.shape[-1]), A, B[token], C[token], D, None, dt_bias, softplus,
               state_batch_indices=target, dst_state_batch_indices=target, out=y)
        out[token] = y
        source = slots[:, position].long()


def _float32(*tensors: Tensor | None) -> bool:
    return all(tensor is None or tensor.dtype == torch.float32 for tensor in tensors)


def indices(*tensors: Tensor) -> list[Tensor]:
    """As the C++ loops read them."""
    return [tensor.to(torch.int32).contiguous() for tensor in tensors]


def mend() -> None:
    upstream_update, upstream_backend = causal_conv1d.causal_conv1d_update, ssu_dispatch.CPUSSUBackend.__call__
    single_token = mamba_ssm.selective_state_update

    def conv_update(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: bool | str | None = None,
                    conv_state_indices: Tensor | None = None, query_start_loc: Tensor | None = None,
                    num_accepted_tokens: Tensor | None = None, **rest: Any) -> Tensor:
        if num_accepted_tokens is None:
            return upstream_update(x, conv_state, weight, bias, activation, conv_state_indices, query_start_loc, **rest)
        silu = ("silu" if activation else None) if isinstance(activation, bool) else activation
        return convolve(x, conv_state, weight, bias, silu, conv_state_indices, query_start_loc, num_accepted_tokens)

    def backend(self: ssu_dispatch.CPUSSUBackend, state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
                dt_bias: Tensor, z: Tensor | None = None, dt_softplus: bool = False, state_batch_indices: Tensor | None = None,
                dst_state_batch_indices: Tensor | None = None, num_accepted_tokens: Tensor | None = None,
                cu_seqlens: Tensor | None = None, out: Tensor | None = None, **rest: Any) -> None:
        if num_accepted_tokens is None:
            upstream_backend(self, state, x, dt, A, B, C, D, dt_bias, z=z, dt_softplus=dt_softplus,
                             state_batch_indices=state_batch_indices, dst_state_batch_indices=dst_state_batch_indices,
                             cu_seqlens=cu_seqlens, out=out, **rest)
            return
        if z is not None:
            raise NotImplementedError("speculative decoding with a gate inside the state update")
        update_states(single_token, state, x, dt, A, B, C, D, dt_bias, dt_softplus, dst_state_batch_indices, cu_seqlens,
                      num_accepted_tokens, out)

    causal_conv1d.causal_conv1d_update = mamba_mixer2.causal_conv1d_update = conv_update
    ssu_dispatch.CPUSSUBackend.__call__ = backend
