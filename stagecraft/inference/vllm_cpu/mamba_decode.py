"""Mamba-2's mixer in float32 when all sequences decode: two products, and between them one call.

Not a defect of results but of time: model_executor/layers/mamba/mamba_mixer2.py:574 (`MambaMixer2.forward`) splits, views and expands its
tensors in Python, then takes two kernels and the eight operators of the gated norm. `states.cpp` does all of it in a call. Batches with a
prompt in them, quantised projections and other types than float32 go upstream's way.
"""

from __future__ import annotations

from ctypes import c_float, c_int64
from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2
from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first

from stagecraft.inference.vllm_cpu.linear import plain, product
from stagecraft.inference.vllm_cpu.loops import library, too_large
from stagecraft.inference.vllm_cpu.mamba_speculative import indices
from stagecraft.native import at


def served(layer: MambaMixer2) -> bool:
    """Whether the whole layer is this process's, unquantised float32, and as the model has it."""
    parameters = (layer.conv_weights, layer.conv1d.bias, layer.A, layer.D, layer.dt_bias, layer.norm.weight)
    return (library() is not None and layer.tp_size == 1 and plain(layer.in_proj) and plain(layer.out_proj) and not layer.use_replayssm
            and layer.activation in ("silu", "swish") and layer.norm.use_rms_norm
            and all(tensor.dtype == torch.float32 for tensor in (*parameters, *layer.kv_cache[:2])))


def mix(layer: MambaMixer2, projected: Tensor, metadata: Any) -> Tensor:
    """[T, 2 h p + 2 g n + h] -> [T, h p]; the states of the sequences that decode are moved on in place."""
    conv_states = layer.kv_cache[0] if is_conv_state_dim_first() else layer.kv_cache[0].transpose(-1, -2)
    states, slots = layer.kv_cache[1], metadata.state_indices_tensor_d.view(metadata.num_decodes, -1)
    starts, accepted = metadata.query_start_loc_d, metadata.num_accepted_tokens
    if accepted is None:  # no drafts: a token for every sequence, which goes on from the only state that it has
        starts, accepted = torch.arange(len(slots) + 1, dtype=torch.int32), torch.ones(len(slots), dtype=torch.int32)
    heads, size, n = states.shape[1:]
    out = projected.new_empty(len(projected), heads * size)
    sizes = (c_int64 * 14)(*slots.shape, len(projected), heads, size, layer.n_groups, n, layer.conv_kernel_size, layer.norm.group_size,
                           projected.stride(0), *conv_states.stride(), states.stride(0))
    tensors = (projected, conv_states, layer.conv_weights.t().contiguous(), layer.conv1d.bias, states, layer.A, layer.D, layer.dt_bias,
               layer.norm.weight, *indices(slots, starts, accepted), out)
    library().mixer(sizes, c_float(layer.norm.variance_epsilon), *map(at, tensors))
    return out


def mend() -> None:
    upstream = MambaMixer2.forward

    def forward(self: MambaMixer2, hidden_states: Tensor, mup_vector: Tensor | None = None) -> Tensor:
        context = get_forward_context().attn_metadata
        metadata = context.get(self.prefix) if isinstance(context, dict) else None
        if metadata is None or mup_vector is not None or metadata.num_prefills or metadata.num_decode_tokens != len(hidden_states):
            return upstream(self, hidden_states, mup_vector)
        if not hasattr(self, "stagecraft_serves"):
            self.stagecraft_serves = served(self)
        if not self.stagecraft_serves or too_large(len(hidden_states) * self.kv_cache[1][0].numel()):
            return upstream(self, hidden_states, mup_vector)
        return product(self.out_proj, mix(self, product(self.in_proj, hidden_states), metadata))

    MambaMixer2.forward = forward
