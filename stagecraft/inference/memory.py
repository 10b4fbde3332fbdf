"""What a served checkpoint's files say: whether it is one, and how much memory its weights and its sequences need."""

from __future__ import annotations

from math import ceil, prod
from pathlib import Path
from typing import Any

from stagecraft.contract.checkpoint import MEND, read_config
from stagecraft.contract.errors import UserError

BLOCK = 128  # tokens per block of the attention cache, vLLM's choice on a CPU
HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)  # of vLLM's CPU attention
NO_SHARE = 0.01  # of a GPU, beside the bytes of a cache: vLLM then asks of its share only whether so much of the GPU is free
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_VALUES = {"F32": 1, "BF16": 1, "F16": 1, "F8_E4M3": 1, "U8": 2}  # numbers in one stored element: NVFP4 packs two into a byte


def served_config(model: Path) -> dict[str, Any]:
    """config.json of a checkpoint that vLLM is to serve.

    Raises:
        UserError: `model` is no `nemotron_h` checkpoint with weights, or vLLM cannot serve its head size.
    """
    config = read_config(model)
    if not any(model.glob("*.safetensors")):
        raise UserError("a checkpoint without weights: it has no *.safetensors file", where=str(model), mend=MEND)
    if config["head_dim"] not in HEAD_SIZES:
        raise UserError(f"head size {config['head_dim']} cannot be served", where=str(model),
                        mend=f"train with one of {', '.join(map(str, HEAD_SIZES))}")
    return config


def kv_cache_bytes(config: dict[str, Any], max_model_len: int, max_num_seqs: int, dtype: str, draft_tokens: int = 0,
                   tensor: int = 1) -> int:
    """Bytes of cache, in each of `tensor` processes that divide the model, in which `max_num_seqs` sequences of `max_model_len` tokens fit
    at the same time.

    vLLM keeps all layers' caches in pages of one size, the larger of an attention block and a Mamba state. A sequence takes a page
    per attention layer and block, and one per Mamba layer plus one for every drafted token. Layers are put into groups of equal
    size: hence both kinds are counted as the longer one, rounded up.
    """
    size = ELEMENT_BYTES[dtype]
    pattern = config["hybrid_override_pattern"] + (config.get("mtp_hybrid_override_pattern", "") if draft_tokens else "")
    attention, mamba = pattern.count("*"), pattern.count("M")
    token = 2 * ceil(config["num_key_value_heads"] / tensor) * config["head_dim"] * size
    inner = config["mamba_num_heads"] // tensor * config["mamba_head_dim"]
    width = inner + 2 * ceil(config["n_groups"] / tensor) * config["ssm_state_size"]
    state = 4 * inner * config["ssm_state_size"] + width * (config["conv_kernel"] - 1 + draft_tokens) * size
    block = BLOCK * ceil(max(BLOCK * token, state) / (BLOCK * token))  # vLLM lengthens blocks to the size of a Mamba state
    group = max(1, min(attention, mamba) or max(attention, mamba))
    pages = group * (ceil(attention / group) * ceil((max_model_len + draft_tokens) / block) + ceil(mamba / group) * (2 + draft_tokens))
    return block * token * (pages * max_num_seqs + 2 * group)


def weight_bytes(model: Path, dtype: str | None) -> int:
    """Bytes of a checkpoint's weights in memory, from the headers of its files.

    Args:
        model: the directory.
        dtype: what every number is held in, as the CPU plugin holds quantised ones too; None: as they lie in the files.
    """
    from safetensors import safe_open

    total = 0
    for path in model.glob("*.safetensors"):
        if dtype is None:
            total += path.stat().st_size
            continue
        with safe_open(path, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                part = tensors.get_slice(name)
                total += prod(part.get_shape()) * _VALUES.get(part.get_dtype(), 0) * ELEMENT_BYTES[dtype]
    return total
