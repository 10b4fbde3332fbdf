"""The MTP block computes in the engine's type.

Upstream: model_executor/models/nemotron_h_mtp.py:80 and 169 give one projection of the block the type that config.json names, whatever
the engine computes in: a float32 checkpoint served in bfloat16 ended the engine at its first request.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.linear import ColumnParallelLinear
from vllm.model_executor.models import nemotron_h_mtp


def _projection(*, params_dtype: object, **arguments: Any) -> ColumnParallelLinear:
    return ColumnParallelLinear(**arguments)  # in PyTorch's default type, which is the engine's while a model is built


def mend() -> None:
    nemotron_h_mtp.ColumnParallelLinear = _projection
