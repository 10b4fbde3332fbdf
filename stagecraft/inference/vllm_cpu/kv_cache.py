"""Keys and values of ModelOpt checkpoints with an FP8 cache: rounded to FP8, kept in the compute dtype.

Upstream: vllm/engine/arg_utils.py:2257 resolves the cache to fp8 for these checkpoints. With float32 queries the C++ kernel behind
v1/attention/backends/cpu_attn.py:426 then gives log-probabilities 0.4 off on average, and cpu_attn.py:540 refuses CPUs without
AVX-512. Rounding what goes into a cache of the compute dtype has the format's numerics on every CPU, without its saving of memory.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.engine import arg_utils
from vllm.model_executor.layers.quantization.modelopt import ModelOptKVCacheMethod
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

from stagecraft.numerics import fp8


def mend() -> None:
    upstream_process, upstream_update = ModelOptKVCacheMethod.process_weights_after_loading, CPUAttentionBackendImpl.do_kv_cache_update

    def process(self: ModelOptKVCacheMethod, layer: torch.nn.Module) -> None:
        scales = [getattr(layer, name, None) for name in ("k_scale", "v_scale")]
        if all(scale is not None and scale > 0 for scale in scales):
            layer.cache_scales = tuple(scale.detach().clone() for scale in scales)
        upstream_process(self, layer)

    def update(self: CPUAttentionBackendImpl, layer: torch.nn.Module, key: Tensor, value: Tensor, kv_cache: Tensor,
               slot_mapping: Tensor) -> None:
        if hasattr(layer, "cache_scales"):
            key, value = (fp8.round_static(tensor, scale) for tensor, scale in zip((key, value), layer.cache_scales))
        upstream_update(self, layer, key, value, kv_cache, slot_mapping)

    arg_utils.resolve_kv_cache_dtype_string = lambda asked, model_config: asked
    ModelOptKVCacheMethod.process_weights_after_loading = process
    CPUAttentionBackendImpl.do_kv_cache_update = update
