"""Prefix caching: let the scheduler cut a prefill at block boundaries, because the CPU scan returns final states only.

Upstream: vllm/model_executor/layers/mamba/mamba_mixer2.py:1098 (`get_kv_cache_spec`) promises that the state at a block boundary
is exported from inside a forward pass, and line 884 indexes the states with chunk numbers; but mamba/ops/cpu/mamba_ssm.py:10
returns one state a sequence, whatever `return_intermediate_states` says: IndexError with the prefix cache on.
"""

from __future__ import annotations


def patch() -> None:
    """Give Mamba-2 layers the cache specification of every other Mamba layer, without checkpoints inside a prefill."""
    from vllm.model_executor.layers.mamba.abstract import MambaBase
    from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2

    MambaMixer2.get_kv_cache_spec = MambaBase.get_kv_cache_spec
