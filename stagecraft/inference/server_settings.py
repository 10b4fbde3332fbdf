"""What a vLLM server is started with: the settings that are ours to choose, and the arguments that follow from the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stagecraft.contract.bounded import AboveZero, Positive
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import params
from stagecraft.inference.guard import ApiAlone
from stagecraft.inference.hardware import Hardware, built_for_gpus
from stagecraft.inference.memory import NO_SHARE, kv_cache_bytes, served_config, weight_bytes

LOOPBACK = "127.0.0.1"
# vLLM's two processes on a CPU without a model, what they share counted once: 821 and 929 MB in two runs, and room for requests.
ENGINE_BYTES = 1_100_000_000
NO_PREFIX_CACHING = "--no-enable-prefix-caching"
GPU_SHARE = 0.9  # of a GPU's memory that vLLM may fill: its own default

# The chat template leaves it to the model to open `<think>`; this parser takes what precedes `</think>` for reasoning either way,
# and nothing when the prompt has closed the block already (enable_thinking=false). Tool calls are JSON between markers (Hermes).
# JSON without white space of the model's choosing: a grammar lets a weak model indent until its tokens are spent.
CHAT = ("--reasoning-parser", "nemotron_v3", "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
        "--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}')


@params
class Settings:
    """Settings of a server on this machine.

    Attributes:
        name: the model's name on the API.
        max_model_len: tokens of prompt and answer.
        max_num_seqs: sequences in one batch.
        dtype: what the engine computes in.
        draft_tokens: tokens drafted by multi-token prediction before each verification; 0 turns it off.
        tensor: processes that divide the model, each with a GPU of its own where there are GPUs.
        threads: OpenMP threads of each of them.
        startup_seconds: a server that is not healthy by then is given up.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=50)]
    max_model_len: Annotated[int, Field(gt=1)]
    max_num_seqs: Positive
    dtype: Literal["float32", "bfloat16"]
    draft_tokens: Annotated[int, Field(ge=0, le=8)]
    tensor: Positive
    threads: Positive
    startup_seconds: AboveZero


def speculation(draft_tokens: int) -> list[str]:
    """vLLM's arguments for drafts by the model's own MTP block; none for 0.

    Prefix caching stays off with drafts: a cached Mamba state knows nothing of the tokens that a verification rejects.
    """
    if not draft_tokens:
        return []
    return [NO_PREFIX_CACHING, "--speculative-config",
            json.dumps({"method": "mtp", "num_speculative_tokens": draft_tokens}, separators=(",", ":"))]


def fitting(wanted: Settings, model: Path, asked: bool = False) -> Settings:
    """Without drafts, if the checkpoint has no block to draft with.

    Args:
        asked: the drafts were asked for by name.

    Raises:
        UserError: the model's config.json cannot be read, or it lacks the block and drafts were asked for.
    """
    if not wanted.draft_tokens or served_config(model).get("num_nextn_predict_layers"):
        return wanted
    if asked:
        raise UserError("the checkpoint has no MTP block to draft with", where=str(model), mend="give --draft-tokens 0")
    return replace(wanted, draft_tokens=0)


def drafts_borne(draft_tokens: int, model: Path, dtype: str) -> int:
    """`draft_tokens`, or 0 where vLLM's build for GPUs would end at its first request.

    It gives one projection of the MTP block the type of config.json, whatever the engine computes in (models/nemotron_h_mtp.py:80 of vLLM
    0.32.0); the one for CPUs is mended (vllm_cpu/draft_dtype.py).

    Raises:
        UserError: the model's config.json cannot be read.
    """
    config = served_config(model)
    named = config.get("dtype", config.get("torch_dtype", "bfloat16"))
    return draft_tokens if dtype == named or (dtype == "auto" and named != "float32") else 0  # `auto` takes no model in float32


def local_arguments(model: Path, settings: Settings, port: int) -> list[str]:
    """vLLM's arguments for one lean server on the loopback interface of this machine, beside which others have room.

    It caches no prefixes: vLLM would keep Mamba states by block for them (`mamba_cache_mode` "align"), and the CPU plugin's short ways
    through a step (`steady`, `cache_slots`) are for states that stay in their place.

    Raises:
        UserError: the model's config.json cannot be read.
    """
    if built_for_gpus():
        settings = replace(settings, draft_tokens=drafts_borne(settings.draft_tokens, model, settings.dtype))
    cache = kv_cache_bytes(served_config(model), settings.max_model_len, settings.max_num_seqs, settings.dtype, settings.draft_tokens,
                           settings.tensor)
    many = ["--tensor-parallel-size", str(settings.tensor), "--distributed-executor-backend", "mp"] if settings.tensor > 1 else []
    prefixes = [] if settings.draft_tokens else [NO_PREFIX_CACHING]  # with drafts `speculation` has said so
    return [*_common(model, settings, port, settings.dtype), *prefixes, *many, "--enforce-eager", "--kv-cache-memory-bytes", str(cache),
            "--gpu-memory-utilization", str(NO_SHARE)]


def machine_arguments(model: Path, settings: Settings, port: int, hardware: Hardware, drain_seconds: int) -> list[str]:
    """vLLM's arguments for a server that has this machine to itself.

    On a CPU the lean one's. On GPUs: bfloat16 where the profile says float32, with the drafts that it bears, CUDA graphs, vLLM's own share
    of the memory, and the fewest GPUs that hold the weights and divide the heads.

    Args:
        drain_seconds: what requests under way are given to finish once the server is told to end.

    Raises:
        UserError: the model's config.json cannot be read, or the memory is too small; with what is needed and what is there.
    """
    drain = ["--shutdown-timeout", str(drain_seconds)]
    if hardware.device == "cpu":
        _check_cpu(model, settings, hardware)
        return [*local_arguments(model, settings, port), *drain]
    dtype = "bfloat16" if settings.dtype == "float32" else settings.dtype
    settings = replace(settings, draft_tokens=drafts_borne(settings.draft_tokens, model, dtype))
    gpus = ["--tensor-parallel-size", str(_gpus_for(model, hardware)), "--gpu-memory-utilization", str(GPU_SHARE)]
    return [*_common(model, settings, port, dtype), *gpus, *drain]


def _common(model: Path, settings: Settings, port: int, dtype: str) -> list[str]:
    return [
        "--model", str(model), "--served-model-name", settings.name, "--host", LOOPBACK, "--port", str(port), "--dtype", dtype,
        "--max-model-len", str(settings.max_model_len), "--max-num-seqs", str(settings.max_num_seqs),
        "--middleware", f"{ApiAlone.__module__}.{ApiAlone.__name__}", *CHAT, *speculation(settings.draft_tokens),
    ]


def _check_cpu(model: Path, settings: Settings, hardware: Hardware) -> None:
    weights = weight_bytes(model, settings.dtype)
    cache = kv_cache_bytes(served_config(model), settings.max_model_len, settings.max_num_seqs, settings.dtype, settings.draft_tokens)
    needed = weights + cache + ENGINE_BYTES
    if needed > hardware.free_bytes:
        raise UserError(f"needs {needed / 1e9:.1f} GB of memory (weights in {settings.dtype} {weights / 1e9:.1f}, cache {cache / 1e9:.1f}, "
                        f"vLLM {ENGINE_BYTES / 1e9:.1f}), {hardware.free_bytes / 1e9:.1f} GB are free", where=str(model),
                        mend="end other programs, lower serve.server.max_num_seqs, or use a larger machine")


def _gpus_for(model: Path, hardware: Hardware) -> int:
    config, weights = served_config(model), weight_bytes(model, None)
    heads = (config["num_attention_heads"], config["mamba_num_heads"])
    room = GPU_SHARE * hardware.free_bytes
    for count in range(1, hardware.count + 1):
        if weights / count < room and not any(head % count for head in heads):
            return count
    raise UserError(f"its weights take {weights / 1e9:.1f} GB, {hardware.count} x {hardware.name} have "
                    f"{hardware.count * room / 1e9:.1f} GB for them, in parts that divide {heads[0]} attention and {heads[1]} Mamba heads",
                    where=str(model), mend="serve a quantised checkpoint, or use more GPUs")
