"""What this machine can serve with: its GPUs as the driver's own tool reports them, else its cores and free memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata

import psutil

from stagecraft.contract.container import free_memory
from stagecraft.contract.errors import UserError

# What every vLLM has that is started here.
OF_ALL = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights are handed over by reference
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads stay where the trainer's are
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Where several processes divide a model they inherit this; nothing is compiled in them.
OF_MANY = {"TORCH_COMPILE_DISABLE": "1", "PYTHONWARNINGS": "ignore", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
_PATIENCE_SECONDS = 30.0
_QUERY = ["--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]


@dataclass(frozen=True)
class Hardware:
    """Where a model is to run.

    Attributes:
        device: cuda or cpu.
        name: of the GPU, or of nothing in particular.
        count: GPUs of that name, or physical cores.
        free_bytes: memory that is free on the fullest of those GPUs; of the machine, or of this container if that is less.
    """

    device: str
    name: str
    count: int
    free_bytes: int


def detect() -> Hardware:
    """The GPUs of the first one's name if vLLM is built for GPUs and `nvidia-smi` lists any, else the CPU.

    Raises:
        UserError: `nvidia-smi` does not answer.
    """
    gpus = _gpus() if built_for_gpus() else []
    if gpus:
        alike = [free for name, free in gpus if name == gpus[0][0]]
        return Hardware("cuda", gpus[0][0], len(alike), min(alike))
    return Hardware("cpu", "CPU", psutil.cpu_count(logical=False) or 1, free_memory())


def built_for_gpus() -> bool:
    """Whether the installed vLLM is, told as vLLM tells it: by the version, and the CPU's build is a distribution of another name."""
    try:
        return "cpu" not in metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return False


def _gpus() -> list[tuple[str, int]]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        listed = subprocess.run([tool, *_QUERY, *_visible()], capture_output=True, text=True, check=False, timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"no answer within {_PATIENCE_SECONDS:g} seconds", where=tool,
                        mend="see to the GPU's driver: dmesg | grep NVRM") from None
    rows = [line.rpartition(",") for line in listed.stdout.splitlines()] if listed.returncode == 0 else []
    return [(name.strip(), int(free) << 20) for name, _, free in rows if free.strip().isdigit()]


def _visible() -> list[str]:
    """What makes `nvidia-smi` list the GPUs that CUDA shows to this process; of parts of GPUs it knows nothing."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [f"--id={shown}"] if re.fullmatch(r"(\d+|GPU-[\w-]+)(,(\d+|GPU-[\w-]+))*", shown) else []
