"""How much memory the caches of one engine need, from the shapes in config.json."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Any

from stagecraft.contract.errors import UserError

_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
_BLOCK = 128  # vLLM's attention block on CPU, in tokens; it grows where a Mamba state is larger


def read_config(model: Path) -> dict[str, Any]:
    """config.json of a checkpoint.

    Raises:
        UserError: there is none, or it is no JSON.
    """
    path = model / "config.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"no checkpoint can be read here ({error})", where=str(path),
                        mend="give the directory of a Hugging Face checkpoint") from error


def kv_cache_bytes(config: dict[str, Any], max_model_len: int, max_num_seqs: int, dtype: str, draft_tokens: int = 0) -> int:
    """Bytes that hold the caches of `max_num_seqs` sequences of full length, so that none is ever put back.

    vLLM keeps all layers' caches in pages of one size: the larger of an attention block and a Mamba state. A sequence takes
    ceil(length / block) pages of each attention layer and one of each Mamba layer, one more of these for every draft token.
    """
    size = _SIZES[dtype]
    pattern = config["hybrid_override_pattern"]
    attention, mamba = pattern.count("*"), pattern.count("M")
    attention += draft_tokens and config.get("mtp_hybrid_override_pattern", "").count("*")
    inner = config["mamba_num_heads"] * config["mamba_head_dim"]
    window = (config["conv_kernel"] - 1 + draft_tokens) * (inner + 2 * config["n_groups"] * config["ssm_state_size"]) * size
    state = window + inner * config["ssm_state_size"] * _SIZES[config.get("mamba_ssm_cache_dtype") or dtype]
    token = 2 * config["num_key_value_heads"] * config["head_dim"] * size
    block = max(_BLOCK, _BLOCK * ceil(state / (token * _BLOCK))) if mamba else _BLOCK
    pages = attention * ceil((max_model_len + draft_tokens) / block) + mamba * (1 + draft_tokens)
    # Layers are put into groups of equal size, filled up: at most twice the pages, and a page that stays empty.
    return 2 * (pages * max_num_seqs + len(pattern)) * block * token
