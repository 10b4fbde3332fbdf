"""The precision ladder: what each class of layer is asked to compute in, what it computes in on this hardware, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import stagecraft.megatron_cpu  # noqa: F401

import torch
from megatron.core.quantization.quant_config import MatchContext
from torch import nn

from stagecraft.contract.errors import UserError
from stagecraft.model.classes import class_of, linear_layers, sizes_of
from stagecraft.model.config import Architecture
from stagecraft.model.hardware import MULTIPLES, Hardware
from stagecraft.model.precision import ASKED, format_of
from stagecraft.model.stage_recipe import StageRecipe


@dataclass(frozen=True)
class Rung:
    """A class of layers with one requested format: how many layers, what was asked for, what computes, whether by emulation."""

    layer_class: str
    layers: int
    requested: str
    actual: str
    emulated: bool

    def __str__(self) -> str:
        return f"{self.layer_class}, {self.layers}: {self.requested} -> {self.actual}"


@dataclass(frozen=True)
class Resolved:
    """A linear layer: its name in megatron-core's model, its class, what was asked for, what computes, whether by emulation."""

    path: str
    layer_class: str
    requested: str
    actual: str
    emulated: bool


def resolve(architecture: Architecture, precision: str, hardware: Hardware, *, mtp: bool, dtype: torch.dtype,
            tensor: int = 1) -> Iterator[Resolved]:
    """Requested and actual format of every linear layer of the whole model, in the order of the model.

    Args:
        dtype: of parameters and activations, in which unquantised layers compute and emulated products accumulate.
        tensor: tensor-parallel ranks that divide a layer.

    Raises:
        UserError: the layers are Transformer Engine's, which emulates nothing, and the hardware lacks a format or does not take a size.
    """
    recipe, wide = StageRecipe(architecture, precision), str(dtype).removeprefix("torch.")
    for path in linear_layers(architecture, mtp=mtp):
        match = recipe.match(MatchContext(path, None))
        wanted = format_of(match)
        emulated = wanted is not None and not hardware.multiplies(wanted)
        if emulated and hardware.transformer_engine:
            raise UserError(f"{hardware.name} has no {wanted} products ({class_of(path)}), and Transformer Engine emulates none",
                            where="precision", mend="choose another recipe")
        if wanted and not emulated and (odd := [size for size in sizes_of(architecture, path, tensor) if size % MULTIPLES[wanted]]):
            raise UserError(f"{path} has a size of {odd[0]} on a rank, {wanted} in hardware takes multiples of {MULTIPLES[wanted]}",
                            where="architecture", mend="change the size or layout.tensor, or set precision: bf16")
        if wanted is None:
            actual = "float32" if class_of(path) == "router" else wide
        else:
            actual = f"{wanted} emulated, products in {wide}" if emulated else f"{wanted} in hardware"
        yield Resolved(path, class_of(path), match.config_key, actual, emulated)


def ladder(layers: Iterable[Resolved]) -> list[Rung]:
    """The classes of the layers and the formats in them, in the order in which they appear."""
    counts = Counter((layer.layer_class, layer.requested, layer.actual, layer.emulated) for layer in layers)
    return [Rung(name, count, *rest) for (name, *rest), count in counts.items()]


def refuse_emulation(rungs: Sequence[Rung], hardware: Hardware) -> None:
    """End before any work if a format would be emulated.

    Raises:
        UserError: it would; the line names the format and the first class of layers.
    """
    for rung in rungs:
        if rung.emulated:
            raise UserError(f"{rung.requested} ({rung.layer_class}) would be emulated on {hardware.name}, which is slow",
                            where="precision", mend="set emulate: true for that, or precision: bf16")


def check(model: nn.Module, recipe: StageRecipe) -> None:
    """Make sure that every layer of this rank computes in the format that the recipe names.

    Raises:
        UserError: a layer does not, most often because it knows no formats.
    """
    for path, module in model.named_modules():
        if class_of(path) is None or not any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
            continue
        if class_of(path) == "router" and module.config.moe_router_dtype != "fp32":
            raise UserError(f"{recipe.in_the_model(path)} does not compute in float32", where="moe_router_dtype", mend="set it to fp32")
        wanted = format_of(recipe.match(MatchContext(path, None)))
        if wanted != (computes := format_in(module)):
            raise UserError(f"{recipe.in_the_model(path)} computes in {computes or 'its own dtype'}, the recipe says {wanted}",
                            where=f"precision {recipe.precision}", mend="name another format in the recipe")


def format_in(module: nn.Module) -> str | None:
    """The format that a layer, ours or Transformer Engine's, quantises to while it trains."""
    engine = getattr(module, "te_quant_params", None)
    if engine is None:
        return getattr(module, "precision", None)
    asks = vars(engine.training_recipe).items()
    return next((name for name, asked in ASKED.items() if asked.items() <= asks), None)
