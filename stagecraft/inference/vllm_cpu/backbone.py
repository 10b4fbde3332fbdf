"""Nemotron-H's layers in float32 where all sequences decode: one call for all of them that follow each other.

Not a defect of results but of time: model_executor/models/nemotron_h.py:626 (`NemotronHModel.forward`) goes from layer to layer, and each
through its modules, in Python, which took most of a step of a few tokens. `backbone.cpp` goes through the layers by itself, with PyTorch's
BLAS for products of more than a few tokens; what a quantised checkpoint rounds, it rounds (`rounding.cpp`). Layers that are divided over
ranks or computed in other types than float32 go upstream's way, between the others, and so do batches with a prompt in them. The block
that drafts is served in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p, pointer
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2
from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first
from vllm.model_executor.models import nemotron_h
from vllm.model_executor.models.nemotron_h_mtp import NemotronHMultiTokenPredictor
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from stagecraft.inference.vllm_cpu import latent_moe
from stagecraft.inference.vllm_cpu.linear import plain, product
from stagecraft.inference.vllm_cpu.loops import library, too_large
from stagecraft.inference.vllm_cpu.mamba_speculative import indices
from stagecraft.inference.vllm_cpu.quantised import FORMATS, dense, rounding_experts
from stagecraft.native import at, gemm

LONGEST = 16  # tokens of a sequence that count as decoding: one and its drafts


class Matrix(Structure):
    _fields_ = (("weight", c_void_p), ("rows", c_int64), ("columns", c_int64), ("format", c_int64), ("scale", c_float))


class Mlp(Structure):
    _fields_ = (("up", Matrix), ("down", Matrix))


class Moe(Structure):
    _fields_ = (("gate", Matrix), ("into", Matrix), ("out_of", Matrix), ("shared", Mlp),
                *((name, c_void_p) for name in ("bias", "up", "down", "input_scales", "hidden_scales")),
                *((name, c_int64) for name in ("experts", "chosen", "width", "inner", "renormalize", "format")), ("scale", c_float))


class Sequences(Structure):
    _fields_ = (("count", c_int64), ("per_row", c_int64), *((name, c_void_p) for name in ("slots", "starts", "accepted")))


class Mamba(Structure):
    _fields_ = (("in", Matrix), ("out", Matrix), ("sequences", POINTER(Sequences)),
                *((name, c_void_p) for name in ("conv_states", "states", "weight", "bias", "A", "D", "dt_bias", "norm")),
                *((name, c_int64) for name in ("heads", "size", "groups", "n", "kernel", "normed", "by_slot", "by_channel", "by_time",
                                               "state_by_slot")), ("epsilon", c_float))


class Cached(Structure):
    _fields_ = (("count", c_int64), ("per_row", c_int64), *((name, c_void_p) for name in ("starts", "ends", "table", "places")))


class Attention(Structure):
    _fields_ = (("qkv", Matrix), ("out", Matrix), ("cached", POINTER(Cached)), ("cache", c_void_p),
                *((name, c_int64) for name in ("heads", "key_heads", "size", "block", "by_block")),
                *((name, c_float) for name in ("scale", "key_scale", "value_scale")))


class Layer(Structure):
    _fields_ = (("norm", c_void_p), ("epsilon", c_float), ("mamba", POINTER(Mamba)), ("attention", POINTER(Attention)),
                ("moe", POINTER(Moe)), ("mlp", POINTER(Mlp)))


class Run:
    """Layers that follow each other, as `backbone.cpp` has them.

    Args:
        layers: each of them `served`.
        batches: by the name of a layer's cache what decodes in its group.

    Attributes:
        looped: most multiplications of a layer for a token in loops of one thread.
        largest: most of a layer's product for a token.
    """

    def __init__(self, layers: list[nn.Module], batches: dict[str, Structure]):
        self._held: list[Any] = []  # what is pointed to
        self._batches, self.looped, self.largest = batches, 0, 0
        self._layers = (Layer * len(layers))(*map(self._layer, layers))

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """As upstream's layers: x [T, H] is to be added to `residual`, which comes back without what the last layer adds."""
        residual, added = torch.zeros_like(x) if residual is None else residual.clone(), x.clone()
        library().backbone(gemm(), self._layers, c_int64(len(self._layers)), *map(c_int64, x.shape), at(residual), at(added))
        return added, residual

    def _at(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._held.append(tensor := tensor.detach())
        return tensor.data_ptr()

    def _matrix(self, layer: LinearBase | None) -> Matrix:
        if layer is None:
            return Matrix()
        weight, *rounding = dense(layer)
        self.largest = max(self.largest, weight.numel())
        return Matrix(self._at(weight), *weight.shape, *rounding)

    def _layer(self, layer: nn.Module) -> Layer:
        made, (kind, make) = Layer(self._at(layer.norm.weight), layer.norm.variance_epsilon), KINDS[type(layer.mixer)]
        setattr(made, kind, pointer(make(self, layer.mixer)))
        self._held.append(made)
        return made

    def _mlp(self, mixer: nemotron_h.NemotronHMLP) -> Mlp:
        return Mlp(self._matrix(mixer.up_proj), self._matrix(mixer.down_proj))

    def _moe(self, mixer: nemotron_h.NemotronHMoE) -> Moe:
        routed, router = mixer.experts.routed_experts, mixer.experts.router
        up, down, rounding = routed.w13_weight, routed.w2_weight, rounding_experts(routed)
        scales = (rounding.input_scale, rounding.hidden_scale) if rounding else (None, None)
        format_ = FORMATS[rounding.rounding if rounding else None]
        self.looped = max(self.looped, router.top_k * 2 * up[0].numel())
        return Moe(self._matrix(mixer.gate), self._matrix(mixer.fc1_latent_proj), self._matrix(mixer.fc2_latent_proj),
                   self._mlp(mixer.shared_experts), *map(self._at, (mixer.gate.e_score_correction_bias, up, down, *scales)),
                   up.shape[0], router.top_k, up.shape[2], up.shape[1], router.renormalize, format_, mixer.routed_scaling_factor)

    def _mamba(self, mixer: MambaMixer2) -> Mamba:
        conv, states = mixer.kv_cache[:2]
        conv = conv if is_conv_state_dim_first() else conv.transpose(-1, -2)
        self.looped = max(self.looped, states[0].numel())
        tensors = (conv, states, mixer.conv_weights.t().contiguous(), mixer.conv1d.bias, mixer.A, mixer.D, mixer.dt_bias, mixer.norm.weight)
        return Mamba(self._matrix(mixer.in_proj), self._matrix(mixer.out_proj), pointer(self._batches[mixer.prefix]),
                     *map(self._at, tensors), *states.shape[1:3], mixer.n_groups, states.shape[3], mixer.conv_kernel_size,
                     mixer.norm.group_size, *conv.stride(), states.stride(0), mixer.norm.variance_epsilon)

    def _attention(self, mixer: nemotron_h.NemotronHAttention) -> Attention:
        cache = mixer.attn.kv_cache
        return Attention(self._matrix(mixer.qkv_proj), self._matrix(mixer.o_proj), pointer(self._batches[mixer.attn.layer_name]),
                         self._at(cache), mixer.num_heads, mixer.num_kv_heads, mixer.head_dim, cache.shape[2], cache.stride(0),
                         mixer.scaling, *map(float, getattr(mixer.attn, "cache_scales", (0, 0))))


KINDS = {MambaMixer2: ("mamba", Run._mamba), nemotron_h.NemotronHAttention: ("attention", Run._attention),
         nemotron_h.NemotronHMoE: ("moe", Run._moe), nemotron_h.NemotronHMLP: ("mlp", Run._mlp)}


def served(layer: nn.Module) -> bool:
    """Whether the whole layer is this process's, computed in float32, and as the model has it."""
    mixer = layer.mixer
    if type(mixer) not in KINDS:
        return False
    linear = [module for module in mixer.modules() if isinstance(module, LinearBase) and module is not getattr(mixer, "conv1d", None)]
    products, quantised = [*map(dense, linear)], {module for module in linear if not plain(module)}
    if isinstance(mixer, nemotron_h.NemotronHMoE):
        routed = mixer.experts.routed_experts
        if not latent_moe.whole(mixer) or not (latent_moe.plain_experts(routed) or rounding_experts(routed)):
            return False
        if not latent_moe.plain_experts(routed):
            quantised.add(routed)
    if None in products:
        return False
    own = (tensor for module in layer.modules() if module not in quantised for tensor in module.parameters(recurse=False))
    if any(tensor.dtype != torch.float32 or not tensor.is_contiguous() for tensor in (*own, *(weight for weight, *_ in products))):
        return False
    if isinstance(mixer, MambaMixer2):
        return (mixer.tp_size == 1 and not mixer.use_replayssm and mixer.activation in ("silu", "swish") and mixer.norm.use_rms_norm
                and all(cache.dtype == torch.float32 for cache in mixer.kv_cache[:2]))
    if isinstance(mixer, nemotron_h.NemotronHAttention):
        attention, cache = mixer.attn, mixer.attn.kv_cache
        return (attention.isa == "vec" and attention.impl.sliding_window == -1 and cache.dtype == torch.float32
                and cache[0].is_contiguous())
    return True


class Stack:
    """A model's layers in their order: those that are served as runs, the others one by one.

    Args:
        metadata: of any step; layers whose caches share an entry now, share one in every step.

    Attributes:
        last: the metadata of the last step, if it went through all layers in one call.
    """

    def __init__(self, layers: Iterable[nn.Module], metadata: dict[str, Any]):
        self._layers, self._segments, self.last = [*layers], None, None
        self._groups: list[tuple[str, Structure]] = []
        self._by_name: dict[str, Structure] = {}
        seen: dict[int, Structure] = {}
        for mixer in (layer.mixer for layer in self._layers):
            if isinstance(mixer, (MambaMixer2, nemotron_h.NemotronHAttention)):
                name, kind = (mixer.prefix, Sequences) if isinstance(mixer, MambaMixer2) else (mixer.attn.layer_name, Cached)
                if id(metadata[name]) not in seen:
                    seen[id(metadata[name])] = kind()
                    self._groups.append((name, seen[id(metadata[name])]))
                self._by_name[name] = seen[id(metadata[name])]

    @property
    def segments(self) -> list[Run | nn.Module]:
        if self._segments is None:
            self._segments = []
            for ours, group in groupby(self._layers, served):
                layers = [*group]
                self._segments += [Run(layers, self._by_name)] if ours else layers
        return self._segments

    def forget(self) -> None:
        """The weights are others: what points to them is made anew."""
        self._segments = None

    def takes(self, metadata: dict[str, Any], tokens: int) -> bool:
        """Whether a step's sequences all decode, and one thread does for the loops."""
        return all(_decode(metadata[name], made, tokens) for name, made in self._groups) and not any(
            isinstance(segment, Run) and too_large(max(tokens * segment.looped, segment.largest)) for segment in self.segments)

    def __call__(self, x: Tensor, positions: Tensor, metadata: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """x [T, H] -> what the last layer adds to the residual, and the residual, both [T, H]."""
        self.last = metadata if len(self.segments) == 1 and isinstance(self.segments[0], Run) else None
        held = [_sequences(metadata[name], to) if isinstance(to, Sequences) else _cached(metadata[name], to) for name, to in self._groups]
        residual = None
        for segment in self.segments:
            if isinstance(segment, Run):
                x, residual = segment(x, residual)
            else:
                x, residual = segment(positions=positions, hidden_states=x, residual=residual)
        del held  # the structures point there until now
        return x, residual


def _decode(metadata: Any, to: Structure, tokens: int) -> bool:
    if isinstance(to, Sequences):
        return not metadata.num_prefills and metadata.num_decode_tokens == tokens
    return metadata.causal is True and metadata.max_query_len <= LONGEST and metadata.num_actual_tokens == tokens


def _sequences(metadata: Any, to: Sequences) -> list[Tensor]:
    slots = metadata.state_indices_tensor_d.view(metadata.num_decodes, -1)
    starts, accepted = metadata.query_start_loc_d, metadata.num_accepted_tokens
    if accepted is None:  # no drafts: a token for every sequence, which goes on from the only state that it has
        starts, accepted = torch.arange(len(slots) + 1, dtype=torch.int32), torch.ones(len(slots), dtype=torch.int32)
    held = indices(slots, starts, accepted)
    to.count, to.per_row = slots.shape
    to.slots, to.starts, to.accepted = (tensor.data_ptr() for tensor in held)
    return held


def _cached(metadata: Any, to: Cached) -> list[Tensor]:
    held = [*indices(metadata.query_start_loc, metadata.seq_lens, metadata.block_table), metadata.slot_mapping.to(torch.int64)]
    to.count, to.per_row = metadata.block_table.shape
    to.starts, to.ends, to.table, to.places = (tensor.data_ptr() for tensor in held)
    return held


def _stack(model: nn.Module, layers: nn.ModuleList | nn.ModuleDict, tokens: int) -> tuple[Stack, dict[str, Any]] | None:
    """The model's stack and the step's metadata; None if upstream's way is the one."""
    metadata = get_forward_context().attn_metadata
    if library() is None or gemm() is None or not isinstance(metadata, dict):
        return None
    if not hasattr(model, "stagecraft_stack"):
        model.stagecraft_stack = Stack(layers.values() if isinstance(layers, nn.ModuleDict) else layers, metadata)
    if model.stagecraft_stack.takes(metadata, tokens):
        return model.stagecraft_stack, metadata
    model.stagecraft_stack.last = None
    return None


def mend() -> None:
    backbone, block, reload = nemotron_h.NemotronHModel.forward, NemotronHMultiTokenPredictor.forward, GPUModelRunner.reload_weights

    def forward(self: nemotron_h.NemotronHModel, input_ids: Tensor | None, positions: Tensor, intermediate_tensors: Any = None,
                inputs_embeds: Tensor | None = None) -> Any:
        found = None if intermediate_tensors or self.aux_hidden_state_layers else _stack(self, self.layers, len(positions))
        if found is None:
            return backbone(self, input_ids, positions, intermediate_tensors, inputs_embeds)
        stack, metadata = found
        x = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        return self.norm_f(*stack(x, positions, metadata))[0]

    def foresee(self: NemotronHMultiTokenPredictor, input_ids: Tensor | None, positions: Tensor, hidden_states: Tensor,
                intermediate_tensors: Any = None, inputs_embeds: Tensor | None = None) -> Any:
        found = _stack(self, self.layers, len(positions))
        if found is None or not all(isinstance(segment, Run) for segment in found[0].segments):
            return block(self, input_ids, positions, hidden_states, intermediate_tensors, inputs_embeds)
        stack, metadata = found
        first, last = self.layers["0"], self.layers[str(self.pattern_len - 1)]
        embedded = self.get_input_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        fused = torch.cat([first.enorm(embedded), first.hnorm(hidden_states)], -1)
        return last.final_layernorm(*stack(product(first.eh_proj, fused), positions, metadata))[0]

    def reload_weights(self: GPUModelRunner, *arguments: Any, **named: Any) -> None:
        reload(self, *arguments, **named)
        for module in self.get_model().modules():
            if isinstance(module, nemotron_h.NemotronHModel) and hasattr(module, "stagecraft_stack"):
                module.stagecraft_stack.forget()

    nemotron_h.NemotronHModel.forward, NemotronHMultiTokenPredictor.forward = forward, foresee
    GPUModelRunner.reload_weights = reload_weights
