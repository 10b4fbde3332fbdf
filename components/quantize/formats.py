"""Which operator gets which format: NVIDIA's recipe for this model as ModelOpt ships it, and the FP8 recipe derived from it.

| operator                          | FP8 checkpoint | NVFP4 checkpoint          |
|-----------------------------------|----------------|---------------------------|
| routed experts                    | FP8            | NVFP4, scales as in params |
| shared expert, Mamba projections  | FP8            | FP8                       |
| KV cache                          | FP8            | FP8                       |
| attention, latent projections, embedding, head, router, convolution, MTP | as they are | as they are |

(arXiv 2604.12374, table of section 4; FP8 here is E4M3 with one calibrated scale per tensor.)
"""

from __future__ import annotations

from typing import Any, Literal

from stagecraft.contract.errors import UserError

SHIPPED = "models/nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16/ptq"
RECIPES = {"least_squares": "nvfp4-mse", "max": "nvfp4-max-calib"}
FP8 = {"num_bits": (4, 3), "axis": None}


def recipe(name: str, scales: Literal["least_squares", "max"] = "least_squares") -> dict[str, Any]:
    """ModelOpt's configuration (`quant_cfg` and `algorithm`) for "fp8" or "nvfp4".

    Raises:
        UserError: for another name, or a way of choosing scales that is not in `RECIPES`.
    """
    from modelopt.recipe import load_recipe

    if name not in ("fp8", "nvfp4"):
        raise UserError(f"unknown format {name!r}", where="quantize", mend="choose fp8 or nvfp4")
    if scales not in RECIPES:
        raise UserError(f"unknown way to choose scales {scales!r}", where="quantize", mend=f"choose from {', '.join(RECIPES)}")
    config = load_recipe(f"{SHIPPED}/{RECIPES[scales]}").quantize.model_dump()
    if name == "nvfp4":
        return config
    rules = [{**rule, "cfg": FP8} if "experts" in rule["quantizer_name"] else rule for rule in config["quant_cfg"]]
    return {"quant_cfg": rules, "algorithm": {"method": "max"}}
