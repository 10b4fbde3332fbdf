"""Precision per operator: the recipes of formats.yaml, for training and for serving."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stagecraft.contract.errors import UserError
from stagecraft.planning.hardware import Gpu

_PATH = Path(__file__).parent / "formats.yaml"
# NVFP4: half a byte per element and one E4M3 scale per block of 16; the FP32 scale per tensor is too small to count. MXFP: an E8M0 scale
# per block of 32.
_BYTES = {"float32": 4.0, "tf32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "mxfp8": 1 + 1 / 32, "nvfp4": 0.5 + 1 / 16,
          "mxfp4": 0.5 + 1 / 32}


def bytes_of(name: str) -> float:
    """Bytes per element of a format, its block scales included."""
    return _BYTES[name]


@dataclass(frozen=True)
class Formats:
    """One recipe. Names of formats are those that `bytes_of` knows."""

    name: str
    rest: str
    operators: dict[str, str] = field(default_factory=dict)
    last_layers: str | None = None
    last_layers_share: float = 0.0
    compute: dict[str, str] = field(default_factory=dict)
    cache: str = "bfloat16"
    state: str = "float32"

    def of(self, operator: str, *, mtp: bool = False, layer: int = 0, layers: int = 0) -> str:
        """The format of an operator's weights, in the MTP block or in layer `layer` of `layers`."""
        if mtp and "mtp" in self.operators:
            return self.operators["mtp"]
        if operator == "router":
            return self.operators.get("router", self.rest)
        if self.last_layers and layers and layer >= layers - ceil(self.last_layers_share * layers):
            return self.last_layers
        return self.operators.get(operator, self.rest)

    def on(self, machine: Gpu) -> Formats:
        """The recipe as a machine can run it: a format it lacks becomes the next wider one it has."""
        known = {name: machine.format(name) for name in (self.rest, self.last_layers, *self.operators.values()) if name}
        return replace(self, rest=known[self.rest], operators={key: known[name] for key, name in self.operators.items()},
                       last_layers=known[self.last_layers] if self.last_layers else None)

    def computed(self, weights: str) -> str:
        """The format that products of such weights run in."""
        return self.compute.get(weights, weights)


@cache
def _recipes() -> dict[str, dict[str, Any]]:
    return YAML(typ="safe").load(_PATH.read_text())


def formats(purpose: str, name: str) -> Formats:
    """The recipe of `purpose` ("training" or "serving").

    Raises:
        UserError: there is none of that name.
    """
    recipes = _recipes()[purpose]
    if name not in recipes:
        raise UserError(f"no {purpose} precision {name!r}", where="--precision", mend=f"known are {', '.join(recipes)}")
    recipe = dict(recipes[name])
    own = {key: recipe.pop(key) for key in ("rest", "last_layers", "last_layers_share", "compute", "cache", "state") if key in recipe}
    return Formats(name=name, operators=recipe, **own)
