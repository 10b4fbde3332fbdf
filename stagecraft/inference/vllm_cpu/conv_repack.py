"""Weight updates in bfloat16: keep the convolution's weight where Mamba-2 reads it.

Upstream: vllm/model_executor/layers/utils.py:470 (`dispatch_cpu_unquantized_gemm`) packs conv1d.weight into a new storage on
CPUs with AVX512-BF16, while mamba/mamba_mixer2.py registers `conv_weights`, a view of the old storage, once. After the next
reload the convolution still reads the weights of before: silently wrong tokens. Mamba-2 never reads the packed copy.
"""

from __future__ import annotations

from typing import Any

import torch


def patch() -> None:
    """Leave the convolutions of mixers unpacked."""
    from vllm.model_executor.layers import utils

    upstream = utils.dispatch_cpu_unquantized_gemm  # linear.py:214 imports it by name at each call

    def dispatch(layer: torch.nn.Module, remove_weight: bool) -> Any:
        weight = getattr(layer, "weight", None)
        if weight is not None and weight.dim() == 3 and getattr(layer, "prefix", "").endswith("mixer.conv1d"):
            return None
        return upstream(layer, remove_weight)

    utils.dispatch_cpu_unquantized_gemm = dispatch
