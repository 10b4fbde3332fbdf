"""An unquantised linear layer of one process without the layers of Python around its kernel: a third of a small product's time."""

from __future__ import annotations

from torch import Tensor
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod


def plain(layer: LinearBase) -> bool:
    """Whether `product` computes what the layer does."""
    return type(layer.quant_method) is UnquantizedLinearMethod and layer.bias is None and layer.tp_size == 1


def product(layer: LinearBase, x: Tensor) -> Tensor:
    """x [T, in] -> [T, out]"""
    return layer.cpu_linear(x, layer.weight, None)
