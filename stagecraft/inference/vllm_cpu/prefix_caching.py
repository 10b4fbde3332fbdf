"""Prefix caching of Mamba-2 states on a CPU.

Upstream: model_executor/layers/mamba/mamba_mixer2.py:1073 (`get_kv_cache_spec`) promises that states at block boundaries can be
exported from the middle of a prefill, which is a Triton kernel; the C++ chunk scan returns final states only, and indexing them
at mamba_mixer2.py:880 raises IndexError. Without the promise the scheduler splits prefills at block boundaries instead.
"""

from __future__ import annotations

from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2


def mend() -> None:
    MambaMixer2.get_kv_cache_spec = MambaBase.get_kv_cache_spec
