"""What a vLLM server is started with: the settings that are ours to choose, and the arguments that follow from the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stagecraft.contract.params import params
from stagecraft.inference.memory import kv_cache_bytes, read_config

LOOPBACK = "127.0.0.1"

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
        threads: OpenMP threads of the engine.
        startup_seconds: a server that is not healthy by then is given up.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=50)]
    max_model_len: Annotated[int, Field(gt=1)]
    max_num_seqs: Annotated[int, Field(gt=0)]
    dtype: Literal["float32", "bfloat16"]
    draft_tokens: Annotated[int, Field(ge=0, le=8)]
    threads: Annotated[int, Field(gt=0)]
    startup_seconds: Annotated[float, Field(gt=0)]


def speculation(draft_tokens: int) -> list[str]:
    """vLLM's arguments for drafts by the model's own MTP block; none for 0.

    Prefix caching stays off with drafts: a cached Mamba state knows nothing of the tokens that a verification rejects.
    """
    if not draft_tokens:
        return []
    return ["--no-enable-prefix-caching", "--speculative-config",
            json.dumps({"method": "mtp", "num_speculative_tokens": draft_tokens}, separators=(",", ":"))]


def local_arguments(model: Path, settings: Settings, port: int) -> list[str]:
    """vLLM's arguments for one lean server on the loopback interface of this machine.

    Raises:
        UserError: the model's config.json cannot be read.
    """
    cache = kv_cache_bytes(read_config(model), settings.max_model_len, settings.max_num_seqs, settings.dtype, settings.draft_tokens)
    return [
        "--model", str(model), "--served-model-name", settings.name, "--host", LOOPBACK, "--port", str(port),
        "--dtype", settings.dtype, "--enforce-eager", "--max-model-len", str(settings.max_model_len),
        "--max-num-seqs", str(settings.max_num_seqs), "--kv-cache-memory-bytes", str(cache),
        *CHAT, *speculation(settings.draft_tokens),
    ]
