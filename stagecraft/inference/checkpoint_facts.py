"""What a served checkpoint's config.json says: whether it is one, and how much memory its sequences need."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Any

from stagecraft.contract.errors import UserError

BLOCK = 128  # tokens per block of the attention cache, vLLM's choice on a CPU
HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)  # of vLLM's CPU attention


def read_config(model: Path) -> dict[str, Any]:
    """config.json of a canonical checkpoint.

    Raises:
        UserError: `model` is no `nemotron_h` checkpoint with weights, or vLLM cannot serve its head size.
    """
    mend = "give a checkpoint directory, such as artifacts/aligned"
    try:
        config = json.loads((Path(model) / "config.json").read_text())
    except FileNotFoundError:
        raise UserError("not a checkpoint: it has no config.json", where=str(model), mend=mend) from None
    except (OSError, ValueError) as error:
        raise UserError(f"unreadable config.json: {error}", where=str(model), mend=mend) from None
    if config.get("model_type") != "nemotron_h":
        raise UserError(f"a model of type {config.get('model_type')!r}, not nemotron_h", where=str(model), mend=mend)
    if not any(Path(model).glob("*.safetensors")):
        raise UserError("a checkpoint without weights: it has no *.safetensors file", where=str(model), mend=mend)
    if config["head_dim"] not in HEAD_SIZES:
        raise UserError(f"head size {config['head_dim']} cannot be served", where=str(model),
                        mend=f"train with one of {', '.join(map(str, HEAD_SIZES))}")
    return config


def cache_bytes(config: dict[str, Any], *, max_model_len: int, max_num_seqs: int, draft_tokens: int, element_bytes: int) -> int:
    """Bytes of cache in which `max_num_seqs` sequences of `max_model_len` tokens fit at the same time.

    vLLM keeps attention blocks and Mamba states in pages of one size, one page per layer and block; a Mamba layer needs a page per
    sequence and one more per drafted token. Layers are served in groups of equal length, so the shorter kind may waste pages: hence
    both kinds are counted as the longer one rounded up.
    """
    pattern = config["hybrid_override_pattern"] + (config.get("mtp_hybrid_override_pattern", "") if draft_tokens else "")
    attention, mamba = pattern.count("*"), pattern.count("M")
    token = 2 * config["num_key_value_heads"] * config["head_dim"] * element_bytes
    inner = config["mamba_num_heads"] * config["mamba_head_dim"]
    convolution = (inner + 2 * config["n_groups"] * config["ssm_state_size"]) * (config["conv_kernel"] - 1 + draft_tokens) * element_bytes
    page = max(BLOCK * token, 4 * inner * config["ssm_state_size"] + convolution)
    block = max(BLOCK, BLOCK * ceil(page / (BLOCK * token)))  # vLLM lengthens attention blocks to the size of a Mamba state
    page = block * token
    group = max(1, min(attention, mamba) if attention and mamba else max(attention, mamba))
    pages = group * (ceil(attention / group) * ceil(max_model_len / block) + ceil(mamba / group) * (1 + draft_tokens + 1))
    return page * (pages * max_num_seqs + 2 * group)
