"""What multiplies the matrices: a CPU or a GPU, the number formats it has in hardware, and whether Transformer Engine drives it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from stagecraft.megatron_cpu import ON_CPU

import torch
from megatron.core.extensions.transformer_engine import HAVE_TE

from stagecraft.model.formats import FP8, MXFP8, NVFP4

# The compute capabilities, from and below, with which Transformer Engine trains in a format in hardware: its _compute_fp8_support and
# _compute_mxfp8_support, and the devices that its documentation of NVFP4 lists for training (10.0 and 10.3).
NATIVE = {NVFP4: ((10, 0), (11, 0)), MXFP8: ((10, 0), (12, 0)), FP8: ((8, 9), (99, 0))}
# What it wants both sizes of a weight, as a rank holds it, to be multiples of.
MULTIPLES = {NVFP4: 16, MXFP8: 32, FP8: 16}
FAMILIES = {"ampere": (8, 0), "ada": (8, 9), "hopper": (9, 0), "blackwell": (10, 0)}  # by their label nvidia.com/gpu.family


@dataclass(frozen=True)
class Hardware:
    """What multiplies: a device, its CUDA compute capability (None: a CPU), and whether the linear layers are Transformer Engine's."""

    name: str
    capability: tuple[int, int] | None
    transformer_engine: bool

    @classmethod
    def of(cls, config: Any) -> Hardware:
        """This rank's, under a megatron-core TransformerConfig."""
        if ON_CPU:
            return cls("CPU", None, False)
        return cls(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), config.transformer_impl == "transformer_engine")

    @classmethod
    def planned(cls, family: str | None, formats: Collection[str], dtype: torch.dtype) -> Hardware:
        """Of a family of GPUs (None: a CPU) with Transformer Engine installed, for a recipe's formats."""
        if family is None:
            return cls("CPU", None, False)
        capability = FAMILIES[family]
        return cls(family.capitalize(), capability, _serves(capability, formats, dtype))

    def multiplies(self, precision: str) -> bool:
        """Whether products of operands in this format run in hardware."""
        since, below = NATIVE[precision]
        return self.transformer_engine and self.capability is not None and since <= self.capability < below


def runs_transformer_engine(formats: Collection[str], dtype: torch.dtype) -> bool:
    """Whether its layers serve: formats that the GPU multiplies, activations of 16 bits, the package installed.

    Where nothing is quantised ours are the faster ones (docs/performance.md): it keeps every expert's weights apart.
    """
    return not ON_CPU and HAVE_TE and _serves(torch.cuda.get_device_capability(), formats, dtype)


def _serves(capability: tuple[int, int], formats: Collection[str], dtype: torch.dtype) -> bool:
    return bool(formats) and dtype != torch.float32 and all(map(Hardware("a GPU", capability, True).multiplies, formats))
