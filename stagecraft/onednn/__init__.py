"""Products of float32 matrices by oneDNN, which PyTorch brings along, on AMD's processors with AVX-512, of which MKL uses half.

On one thread oneDNN multiplied 2.1 to 2.5 times as fast there (`python -m benchmarks.products`). A call costs it more than MKL: small
products stay with the latter.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from stagecraft import native


@functools.cache
def replace_products() -> bool:
    """Have oneDNN multiply in this process, whoever asks PyTorch for a product, where that is faster; whether it does so now."""
    if not (_is_amd_with_avx512() and torch.backends.mkldnn.is_available()):
        return False
    library = native.library(Path(__file__).parent)
    if library is not None:
        library.replace_products()
    return library is not None


def _is_amd_with_avx512() -> bool:
    try:
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "AuthenticAMD" in cpu and torch.backends.cpu.get_cpu_capability() == "AVX512"
