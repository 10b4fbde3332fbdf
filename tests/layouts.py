"""Cases that four ranks run one after the other under torchrun: how a test asks for them, and what every rank does."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.processes import torchrun

Told = tuple[dict[str, Any], dict[str, Tensor]]  # figures, and the whole weights


def ask(module: str, weights: Mapping[str, Tensor], cases: Mapping[str, Any], directory: Path, **environment: str) -> dict[str, Told]:
    """What four ranks say of all cases that start from `weights`; `module` calls `tell` as its main program."""
    save_file(dict(weights), directory / "weights.safetensors")
    (directory / "cases.json").write_text(json.dumps(cases))
    torchrun(4, "-m", module, str(directory), **environment)
    found = json.loads((directory / "told.json").read_text())
    return {name: (found[name], torch.load(directory / f"{name}.pt")) for name in cases}


def tell(run: Callable[[dict[str, Tensor], Any, Path], Told]) -> None:
    """Run all cases: (weights, case, directory of its own) -> what was seen; rank 0, which has the whole weights, writes it."""
    directory = Path(sys.argv[1])
    weights, cases = load_file(directory / "weights.safetensors"), json.loads((directory / "cases.json").read_text())
    told = {}
    for name, case in cases.items():
        found, whole = run(weights, case, directory / name)
        if whole:
            torch.save(whole, directory / f"{name}.pt")
            told[name] = found
    if told:
        (directory / "told.json").write_text(json.dumps(told))
