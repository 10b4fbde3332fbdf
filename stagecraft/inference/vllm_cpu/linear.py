"""Unquantised linear layers of one process: their weights as the checkpoint has them, and a product without the Python around its kernel.

Not a defect of results but of time: model_executor/layers/utils.py:560 (`dispatch_cpu_unquantized_gemm`) hands float32 weights to oneDNN,
which keeps them in an order of its own. The loops of `backbone.cpp` read them as they are, and so does PyTorch's BLAS.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.model_executor.layers import utils
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod


def plain(layer: LinearBase) -> bool:
    """Whether `product` computes what the layer does."""
    return type(layer.quant_method) is UnquantizedLinearMethod and layer.bias is None and layer.tp_size == 1


def product(layer: LinearBase, x: Tensor) -> Tensor:
    """x [T, in] -> [T, out]"""
    return layer.cpu_linear(x, layer.weight, None)


def mend() -> None:
    upstream = utils.dispatch_cpu_unquantized_gemm

    def dispatch(layer: nn.Module, remove_weight: bool) -> None:
        if layer.weight.is_meta or layer.weight.dim() != 2 or layer.weight.dtype != torch.float32:
            return upstream(layer, remove_weight)
        layer.cpu_linear = F.linear

    utils.dispatch_cpu_unquantized_gemm = dispatch
