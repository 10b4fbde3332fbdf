"""bfloat16 convolution weights of Mamba-2 after a weight update.

Upstream: model_executor/layers/utils.py:522 packs `conv1d.weight` for AVX-512 BF16 into a new storage, while
mamba/mamba_mixer2.py:475 keeps `conv_weights`, a view of the old one, and computes with that. The first load happens before the
packing, so it looks right; a later `reload_weights` writes the new storage only, and the convolution stays that of the old
model: wrong tokens without any error. Mamba-2 never reads the packed copy, so it is not made.
"""

from __future__ import annotations

import torch
from vllm.model_executor.layers import linear, utils


def mend() -> None:
    upstream = utils.dispatch_cpu_unquantized_gemm

    def dispatch(layer: torch.nn.Module, remove_weight: bool) -> None:
        if layer.weight.ndim == 3 and "mixer.conv1d" in getattr(layer, "prefix", ""):
            return
        upstream(layer, remove_weight)

    utils.dispatch_cpu_unquantized_gemm = linear.dispatch_cpu_unquantized_gemm = dispatch
