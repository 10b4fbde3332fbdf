"""The C++ loops of this package: routed experts, Mamba-2's states under speculative decoding, and whole layers."""

from functools import partial
from pathlib import Path

import torch

from stagecraft import native

library = partial(native.library, Path(__file__).parent)


def too_large(work: int) -> bool:
    """Whether so many multiplications are left to operators with several threads, where there are any: a loop has one."""
    return work > 2**21 and torch.get_num_threads() > 1
