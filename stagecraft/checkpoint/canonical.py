"""The canonical checkpoint on disk: a Hugging Face `nemotron_h` directory that transformers, vLLM and ModelOpt read."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stagecraft.checkpoint.convert import from_hf
from stagecraft.contract.checkpoint import TOKENIZER, read_config
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import write_json
from stagecraft.model.config import Architecture

WEIGHTS = "model.safetensors"
MEND = "restore the file or make the checkpoint anew"
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def write_checkpoint(directory: Path, architecture: Architecture, tensors: Iterable[tuple[str, Tensor]], tokenizer: Path) -> None:
    """Write weights, configuration, generation defaults and the tokenizer with its chat template.

    Args:
        tensors: canonical names and tensors; `e_score_correction_bias` and Mamba's scalars keep their own dtype.
        tokenizer: a directory with a Hugging Face tokenizer, a checkpoint too; of its files the tokenizer's are copied.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for path in sorted(tokenizer.iterdir()):
        if path.is_file() and path.name.startswith(TOKENIZER):
            shutil.copyfile(path, directory / path.name)
    ids = special_ids(tokenizer)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors}
    dtype = DTYPES[state["backbone.embeddings.weight"].dtype]
    save_file(state, directory / WEIGHTS, metadata={"format": "pt"})
    write_json(directory / "generation_config.json", {**ids, "do_sample": True, "temperature": 1.0, "top_p": 0.95})
    write_json(directory / "config.json", {**architecture.to_hf(), **ids, "dtype": dtype})


def special_ids(tokenizer: Path) -> dict[str, int]:
    """`pad_token_id`, `bos_token_id` and `eos_token_id` of a tokenizer directory."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    return {"pad_token_id": loaded.pad_token_id, "bos_token_id": loaded.bos_token_id, "eos_token_id": loaded.eos_token_id}


def read_checkpoint(directory: Path) -> tuple[Architecture, dict[str, Tensor]]:
    """Read architecture and tensors.

    Raises:
        UserError: no checkpoint there, another architecture, an unreadable weight file, or tensors missing.
    """
    architecture = read_architecture(directory)
    path = directory / WEIGHTS
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError("no weights", where=str(path), mend="give a directory with model.safetensors") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"unreadable checkpoint: {error}", where=str(path), mend=MEND) from None
    try:
        from_hf(architecture, tensors, mtp=any(name.startswith("mtp.") for name in tensors))
    except KeyError as missing:
        raise UserError(f"the weights lack {missing.args[0]}", where=str(path), mend=MEND) from None
    return architecture, tensors


def read_architecture(directory: Path) -> Architecture:
    """Read the architecture of a canonical checkpoint from its config.json.

    Raises:
        UserError: as `read_config`, or its values fit no architecture of ours.
    """
    config = read_config(directory)
    try:
        return Architecture.from_hf(config)
    except (TypeError, ValueError) as error:
        raise UserError(f"not an architecture of ours: {str(error).splitlines()[0]}", where=str(directory / "config.json"),
                        mend="correct it") from None
