"""Writes a quantised model as a `nemotron_h` checkpoint that vLLM loads: packed weights, scales, both JSON files, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.quantize.operators import Header, module_of, read_header, stored_bits
from stagecraft.contract.checkpoint import TOKENIZER
from stagecraft.contract.files import write_json

COPIED = (*TOKENIZER, "generation_config")  # how names begin


def export(model: torch.nn.Module, source: Path, config: Mapping[str, Any], mtp: dict[str, Tensor], directory: Path) -> None:
    """Export `model`, quantised by ModelOpt, to `directory`.

    The MTP block stays as it is. The list of what is not quantised is by name and complete: ModelOpt (export/quant_utils.py:782)
    leaves it out where there are two formats, and vLLM (model_executor/layers/quantization/modelopt.py:1763) then gives
    unquantised experts the format of their neighbours. config.json is the source's own with `quantization_config` added: what
    ModelOpt writes comes from transformers, which drops `hybrid_override_pattern` and the MTP keys that vLLM reads.

    Raises:
        RuntimeError: a tensor of the source is in neither its own nor a quantised form among the exported ones.
    """
    from modelopt.torch.export import export_hf_checkpoint

    if mtp:
        model._mtp_layer_prefixes = ["mtp"]  # ModelOpt adds `mtp*` to the modules that are not quantised
    export_hf_checkpoint(model, dtype=model.dtype, export_dir=directory, extra_state_dict=mtp)
    written = json.loads((directory / "config.json").read_text())["quantization_config"]
    own = json.loads((directory / "hf_quant_config.json").read_text())
    written["ignore"] = own["quantization"]["exclude_modules"] = unquantised(read_header(directory))
    write_json(directory / "config.json", {**config, "quantization_config": written})
    write_json(directory / "hf_quant_config.json", own)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name.startswith(COPIED):
            shutil.copy2(path, directory / path.name)
    lost = read_header(source).keys() - read_header(directory).keys()
    if lost:
        raise RuntimeError(f"the export of {source} lost {len(lost)} tensors, {min(lost)} the first")


def unquantised(header: Header) -> list[str]:
    """Modules of a checkpoint with a matrix that is stored as it was: routed experts once for all of a layer, `mtp*` for its block."""
    matrices = [name.removesuffix(".weight") for name, (_, shape) in header.items() if name.endswith(".weight") and len(shape) > 1]
    plain = [name for name in matrices if f"{name}.weight_scale" not in header]
    return sorted({"mtp*" if name.startswith("mtp.") else module_of(f"{name}.weight") or name for name in plain})


def effective_bits(directory: Path, source: Path, operators: Collection[str] | None = None) -> tuple[float, float]:
    """Bits per parameter of an exported checkpoint, scales included: (of the operators named, of the whole checkpoint).

    Without `operators`: of those that are quantised.
    """
    stored, sizes = read_header(directory), {name: prod(shape) for name, (_, shape) in read_header(source).items()}
    if operators is None:
        operators = {module_of(name) for name in stored if name.endswith(".weight_scale")}
    numel = sum(size for name, size in sizes.items() if module_of(name) in operators and name.endswith(".weight"))
    return stored_bits(stored, operators) / max(1, numel), stored_bits(stored) / sum(sizes.values())
