"""Writes a quantised model as a `nemotron_h` checkpoint that vLLM loads: packed weights, scales, both JSON files, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from stagecraft.contract.files import write_json

SCALES = (".weight_scale", ".weight_scale_2", ".input_scale")
COPIED = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "generation_config")  # how names begin
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1, "I8": 1}


def export(model: torch.nn.Module, source: Path, config: Mapping[str, Any], mtp: dict[str, Tensor], directory: Path) -> None:
    """Export `model`, quantised by ModelOpt, to `directory`.

    The MTP block stays as it is. config.json is the source's own with `quantization_config` added: what ModelOpt writes comes
    from transformers, which drops `hybrid_override_pattern` and the MTP keys that vLLM reads.

    Raises:
        RuntimeError: a tensor of the source is in neither its own nor a quantised form among the exported ones.
    """
    from modelopt.torch.export import export_hf_checkpoint

    if mtp:
        model._mtp_layer_prefixes = ["mtp"]  # ModelOpt adds `mtp*` to the modules that are not quantised
    export_hf_checkpoint(model, dtype=model.dtype, export_dir=directory, extra_state_dict=mtp)
    written = json.loads((directory / "config.json").read_text())
    write_json(directory / "config.json", {**config, "quantization_config": written["quantization_config"]})
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name.startswith(COPIED):
            shutil.copy2(path, directory / path.name)
    lost = _shapes(source).keys() - _shapes(directory).keys()
    if lost:
        raise RuntimeError(f"the export of {source} lost {len(lost)} tensors, {min(lost)} the first")


def effective_bits(directory: Path, source: Path) -> tuple[float, float]:
    """Bits per parameter of an exported checkpoint, scales included: (quantised operators alone, the whole checkpoint)."""
    stored, numels = _shapes(directory), {name: prod(shape) for name, (_, shape) in _shapes(source).items()}
    quantised = {name.removesuffix("_scale") for name in stored if name.endswith(".weight_scale")}
    total = part = 0
    for name, (dtype, shape) in stored.items():
        bits = 8 * _BYTES[dtype] * prod(shape)
        total += bits
        if name in quantised or (name.endswith(SCALES) and name.rsplit(".", 1)[0] + ".weight" in quantised):
            part += bits
    return part / max(1, sum(numels[name] for name in quantised)), total / sum(numels.values())


def _shapes(directory: Path) -> dict[str, tuple[str, list[int]]]:
    """name -> (dtype code, shape) of every stored tensor, from the headers alone."""
    shapes = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as stream:
            for name in stream.keys():  # noqa: SIM118
                part = stream.get_slice(name)
                shapes[name] = (part.get_dtype(), part.get_shape())
    return shapes
