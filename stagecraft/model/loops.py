"""The C++ loops of this package: the scan, attention, the norm, the activation, the experts' products and the cross-entropy."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from stagecraft import native

library = partial(native.library, Path(__file__).parent)


def in_one_call(x: Tensor) -> bool:
    """Whether such a tensor is the loops' here."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and library() is not None
