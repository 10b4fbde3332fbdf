"""For `multiprocessing`'s fork server: what the process of an engine imports first, in the one that others are forked from."""

from __future__ import annotations

import importlib
import os

from stagecraft.inference.engine import ENVIRONMENT
from stagecraft.inference.imports import without_scientific_libraries

os.environ.update(ENVIRONMENT)
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
without_scientific_libraries()
for name in ("entrypoints.llm", "v1.engine.llm_engine", "v1.worker.gpu_model_runner", "model_executor.models.nemotron_h"):
    importlib.import_module(f"vllm.{name}")
