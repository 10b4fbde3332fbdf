"""Cross-entropy over a whole vocabulary: on CPUs a C++ loop with one exponential per logit, PyTorch's elsewhere."""

from __future__ import annotations

from ctypes import c_int64
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecraft.model.loops import library
from stagecraft.native import at


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """logits [rows, classes] of any float type, labels int64 [rows] -> losses in nats, float32 [rows].

    Raises:
        IndexError: a label is no class.
    """
    logits = logits.float()
    if logits.device.type != "cpu" or library() is None:
        return F.cross_entropy(logits, labels, reduction="none")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise IndexError(f"labels from {int(labels.min())} to {int(labels.max())}, of {logits.shape[1]} classes")
    return _CrossEntropy.apply(logits.contiguous(), labels.long().contiguous())


class _CrossEntropy(torch.autograd.Function):
    """The gradient takes the place of the softmax in memory, so that it can be had once only."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        loss = logits.new_empty(len(logits))
        softmax = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        library().cross_entropy_forward(*map(c_int64, logits.shape), at(logits), at(labels), at(loss), at(softmax))
        ctx.save_for_backward(softmax, labels)
        ctx.taken = False
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.taken:
            raise RuntimeError("the gradient of this cross-entropy was taken already")
        ctx.taken = True
        gradient, labels = ctx.saved_tensors
        library().cross_entropy_backward(*map(c_int64, gradient.shape), at(labels), at(grad.contiguous()), at(gradient))
        return gradient, None
