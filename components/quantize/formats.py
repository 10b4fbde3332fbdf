"""Which operator gets which format: NVIDIA's recipe for this model as ModelOpt ships it, and what derives from it.

| operator                          | FP8 checkpoint | NVFP4 checkpoint, not searched |
|-----------------------------------|----------------|--------------------------------|
| routed experts                    | FP8            | NVFP4, scales as in params     |
| shared expert, Mamba projections  | FP8            | FP8                            |
| KV cache                          | FP8            | FP8                            |
| attention, latent projections, embedding, head, router, convolution, MTP | as they are | as they are |

(arXiv 2604.12374, table of section 4; FP8 here is E4M3 with one calibrated scale per tensor.) A searched checkpoint has the
format that the search chose for each operator, and the same KV cache.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from components.quantize.operators import FORMATS, Operator
from stagecraft.contract.errors import UserError
from stagecraft.numerics.nvfp4 import BLOCK

SHIPPED = "models/nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16/ptq"
RECIPES = {"least_squares": "nvfp4-mse", "max": "nvfp4-max-calib"}
FP8 = {"num_bits": (4, 3), "axis": None}

Scales = Literal["least_squares", "max"]
Config = dict[str, Any]
"""ModelOpt's configuration of a model: `quant_cfg`, rules of which the last that matches counts, and `algorithm`."""


def recipe(name: str, scales: Scales = "least_squares") -> Config:
    """The shipped recipe for "nvfp4", and for "fp8" the same with the experts in FP8.

    Raises:
        UserError: for another name, or a way of choosing scales that is not in `RECIPES`.
    """
    if name not in ("fp8", "nvfp4"):
        raise UserError(f"unknown format {name!r}", where="quantize", mend="choose fp8 or nvfp4")
    config = _shipped(scales)
    if name == "nvfp4":
        return config
    rules = [{**rule, "cfg": FP8} if "experts" in rule["quantizer_name"] else rule for rule in config["quant_cfg"]]
    return {"quant_cfg": rules, "algorithm": {"method": "max"}}


def check_blocks(directory: Path, config: Mapping[str, Any]) -> None:
    """That NVFP4's recipe can be had for the experts of the checkpoint in `directory`, whose config.json is `config`.

    Raises:
        UserError: what their matrices sum over does not make whole blocks.
    """
    latent = "moe_latent_size" if config.get("moe_latent_size") else "hidden_size"
    for key in ("moe_intermediate_size", latent):
        if config.get(key, 0) % BLOCK:
            raise UserError(f"NVFP4 has blocks of {BLOCK}, which do not divide the experts' {key} {config[key]}",
                            where=str(directory / "config.json"), mend="set quantize.search.enabled, which leaves such experts as they are")


def recipe_choice(name: str, operators: Iterable[Operator]) -> dict[str, str]:
    """What `recipe(name)` does, as a choice: operator -> format."""
    def fmt(family: str) -> str:
        return name if family == "experts" else "fp8" if family.startswith(("shared_experts", "in_proj", "out_proj")) else "bf16"

    return {operator.name: fmt(operator.family) for operator in operators}


def uniform(name: str, scales: Scales = "least_squares") -> Config:
    """One format for whatever operator a search tries it on, the KV cache left out."""
    weight, inputs = _pieces(scales)[name]
    rules = [{"quantizer_name": "*", "enable": False}, _rule("*weight_quantizer", weight), _rule("*input_quantizer", inputs)]
    return {"quant_cfg": rules, "algorithm": _shipped(scales)["algorithm"]}


def chosen(choice: Mapping[str, str], scales: Scales = "least_squares") -> Config:
    """The formats of a search, operator -> format, and the recipe's KV cache.

    Raises:
        UserError: for a format that is not in `FORMATS`.
    """
    pieces = _pieces(scales)
    rules = [{"quantizer_name": "*", "enable": False}]
    for name, fmt in choice.items():
        if fmt not in FORMATS:
            raise UserError(f"unknown format {fmt!r}", where=name, mend=f"choose from {', '.join(FORMATS)}")
        if fmt != "bf16":
            module = name.replace("backbone.", "model.", 1)
            rules += [_rule(f"{module}.*{kind}_quantizer", cfg) for kind, cfg in zip(("weight", "input"), pieces[fmt])]
    return {"quant_cfg": [*rules, _rule("*[kv]_bmm_quantizer", FP8)], "algorithm": _shipped(scales)["algorithm"]}


def _pieces(scales: Scales) -> dict[str, tuple[Config, Config]]:
    """format -> configurations of the quantizers of weights and inputs, NVFP4's as the recipe has them for the experts."""
    experts = [rule["cfg"] for rule in _shipped(scales)["quant_cfg"] if rule["quantizer_name"].startswith("*mixer.experts.")]
    return {"nvfp4": (experts[0], experts[1]), "fp8": (FP8, FP8)}


def _shipped(scales: Scales) -> Config:
    from modelopt.recipe import load_recipe

    if scales not in RECIPES:
        raise UserError(f"unknown way to choose scales {scales!r}", where="quantize", mend=f"choose from {', '.join(RECIPES)}")
    with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
        return load_recipe(f"{SHIPPED}/{RECIPES[scales]}").quantize.model_dump()


def _rule(name: str, cfg: Config) -> Config:
    return {"quantizer_name": name, "enable": True, "cfg": cfg}
