"""The matrix products of a checkpoint that may be quantised, and what each of them takes in each format, to the bit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import safe_open

from stagecraft.numerics.nvfp4 import BLOCK

BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1, "I8": 1}
FORMATS = ("nvfp4", "fp8", "bf16")
"""What an operator may become, cheapest first; `bf16` leaves it as it is stored, in float32 too."""
SCALES = (".weight_scale", ".weight_scale_2", ".input_scale")

_SEARCHED = re.compile(r"backbone\.layers\.(\d+)\.mixer\.(in_proj|out_proj|[qkvo]_proj|fc[12]_latent_proj"
                       r"|shared_experts\.(?:up|down)_proj|experts(?=\.\d+\.(?:up|down)_proj\.))")
_TIES = (re.compile(r"(.+)\.[qkv]_proj"), re.compile(r"(.+\.experts)(?:\..+)?"))

Header = Mapping[str, tuple[str, list[int]]]
"""name -> (dtype code of safetensors, shape) of every tensor of a checkpoint."""


@dataclass(frozen=True)
class Operator:
    """One operator: a matrix, or the matrices of all routed experts of a layer, which ModelOpt quantises as one module.

    Attributes:
        name: of the module in the checkpoint, `backbone.layers.3.mixer.q_proj`.
        layer: index.
        family: the name within the layer's mixer, `q_proj`.
        matrices: (rows, columns) of each weight; columns are what is summed over.
        stored_bits: of an element as the source stores it.
    """

    name: str
    layer: int
    family: str
    matrices: tuple[tuple[int, int], ...]
    stored_bits: int

    @property
    def numel(self) -> int:
        """Elements of all weights."""
        return sum(rows * columns for rows, columns in self.matrices)

    def bits(self, fmt: str) -> int:
        """Bits on disk. FP8: 8 an element, and FP32 scales of weight and input for each matrix. NVFP4: 4 an element, 8 for the
        E4M3 scale of each block of 16, and the same two FP32 scales."""
        if fmt == "bf16":
            return self.numel * self.stored_bits
        scales = 2 * 32 * len(self.matrices)
        return self.numel * 8 + scales if fmt == "fp8" else self.numel * 4 + self.numel // BLOCK * 8 + scales


def read_header(directory: Path) -> dict[str, tuple[str, list[int]]]:
    """dtype code and shape of every tensor of a checkpoint; no weights are read."""
    header = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as stream:
            for name in stream.keys():  # noqa: SIM118
                part = stream.get_slice(name)
                header[name] = (part.get_dtype(), part.get_shape())
    return header


def module_of(name: str) -> str | None:
    """The operator that a stored tensor belongs to (`....experts.7.up_proj.input_scale` -> `....experts`); None: to none."""
    found = _SEARCHED.match(name)
    return found.group() if found and name.removeprefix(found.group()).startswith(".") else None


def find_operators(header: Header) -> list[Operator]:
    """Every operator that a search may quantise, in the order of the layers. Embedding, head, router, convolution, norms and MTP
    are none, nor is a matrix whose columns do not make whole blocks of 16."""
    weights: dict[str, list[str]] = {}
    for name in header:
        module = module_of(name)
        if module and name.endswith(".weight"):
            weights.setdefault(module, []).append(name)
    found = []
    for module, names in weights.items():
        layer, family = _SEARCHED.match(names[0]).groups()
        matrices = tuple(tuple(header[name][1]) for name in sorted(names))
        if any(columns % BLOCK for _, columns in matrices):
            continue
        found.append(Operator(module, int(layer), family, matrices, 8 * BYTES[header[names[0]][0]]))
    return sorted(found, key=lambda operator: (operator.layer, operator.name))


def tie(name: str) -> str:
    """Operators (or matrices) with the same key must have the same format: Q, K and V of a layer, which vLLM computes as one
    product, and the routed experts of a layer, up and down projections, which it computes in one kernel."""
    for pattern, kind in zip(_TIES, ("qkv", "experts")):
        found = pattern.fullmatch(name)
        if found and "shared_experts" not in name:
            return f"{found.group(1)}/{kind}"
    return name


def stored_bits(header: Header, names: Iterable[str] | None = None) -> int:
    """Bits of all tensors of a checkpoint, or of those of the operators `names` with their scales."""
    wanted = None if names is None else set(names)
    return sum(8 * BYTES[dtype] * prod(shape) for name, (dtype, shape) in header.items()
               if wanted is None or (module_of(name) in wanted and name.endswith((".weight", *SCALES))))
