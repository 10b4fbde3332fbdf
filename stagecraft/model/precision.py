"""The precision recipes as data: recipes/NAME.yaml maps module patterns to formats; here they are resolved for an architecture.

What comes out is what megatron-core reads (`RecipeConfig.from_config_dict`, or as a file `--te-precision-config-file`): the same
recipe drives the emulation of this package's layers and Transformer Engine's layers.
"""

from __future__ import annotations

from copy import deepcopy
from io import StringIO
from math import ceil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stagecraft.model.config import Architecture
from stagecraft.model.formats import FP8, MXFP8, NVFP4

RECIPES = Path(__file__).parent / "recipes"
# The formats that this package computes in, as a recipe asks Transformer Engine for them.
ASKED = {NVFP4: {"fp4_quantization_recipe": "nvfp4"}, MXFP8: {"fp8_quantization_recipe": "mxfp8"},
         FP8: {"fp8_quantization_recipe": "tensorwise", "fp8_format": "hybrid"}}
PRECISIONS = tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def recipe(architecture: Architecture, precision: str) -> dict[str, Any]:
    """The recipe `precision` with `last_layers` resolved; the first matching pattern decides.

    Raises:
        ValueError: there is no recipe of that name.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    given = YAML(typ="safe").load(RECIPES / f"{precision}.yaml")
    layers = len(architecture.hybrid_override_pattern)
    matchers = {}
    for name, matcher in given["matchers"].items():
        if matcher["type"] == "last_layers":
            common = {"type": "glob", "config": matcher["config"], "enabled": matcher["enabled"]}
            for layer in range(layers - ceil(matcher["share"] * layers), layers):
                matchers[f"{name}: {layer}"] = {**common, "pattern": matcher["pattern"].format(layer=layer)}
        else:
            matchers[name] = matcher
    # A copy of each config: YAML's anchors would come out as aliases.
    return {"configs": {name: deepcopy(config) for name, config in given["configs"].items()}, "matchers": matchers}


def as_yaml(resolved: dict[str, Any]) -> str:
    """A resolved recipe as the file that megatron-core's `RecipeConfig.from_yaml_file` takes."""
    stream = StringIO()
    yaml = YAML()
    yaml.width = 140
    yaml.dump(resolved, stream)
    return stream.getvalue()


def format_of(quant_config: Any) -> str | None:
    """The format a layer trains in, from megatron-core's QuantizationConfig of that layer; None is the tensors' own dtype.

    Raises:
        ValueError: the layer cannot do what the recipe asks for.
    """
    training, path = quant_config.config["training_recipe"], quant_config.match_input.module_path
    if quant_config.config.get("evaluation_recipe") != {}:
        raise ValueError(f"{path}: evaluation is not quantised here; the recipe has to say so with evaluation_recipe: {{}}")
    asked = {key: value for key, value in training.items() if key.endswith("_quantization_recipe") or key == "fp8_format"}
    if not asked:
        return None
    if not training.get("override_nonquantized_autocast"):
        raise ValueError(f"{path}: without override_nonquantized_autocast Transformer Engine would ignore {asked}")
    for name, wanted in ASKED.items():
        if asked == wanted:
            return name
    raise ValueError(f"{path}: no emulation of {asked}")
