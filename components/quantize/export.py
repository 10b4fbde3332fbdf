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

from components.quantize.operators import module_of, read_header, stored_bits
from stagecraft.contract.files import write_json

COPIED = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "generation_config")  # how names begin


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
    lost = read_header(source).keys() - read_header(directory).keys()
    if lost:
        raise RuntimeError(f"the export of {source} lost {len(lost)} tensors, {min(lost)} the first")


def effective_bits(directory: Path, source: Path, operators: Collection[str] | None = None) -> tuple[float, float]:
    """Bits per parameter of an exported checkpoint, scales included: (of the operators named, of the whole checkpoint).

    Without `operators`: of those that are quantised.
    """
    stored, sizes = read_header(directory), {name: prod(shape) for name, (_, shape) in read_header(source).items()}
    if operators is None:
        operators = {module_of(name) for name in stored if name.endswith(".weight_scale")}
    numel = sum(size for name, size in sizes.items() if module_of(name) in operators and name.endswith(".weight"))
    return stored_bits(stored, operators) / max(1, numel), stored_bits(stored) / sum(sizes.values())
