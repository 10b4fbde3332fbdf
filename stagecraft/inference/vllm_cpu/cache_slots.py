"""Slots for the next tokens of a sequence whose blocks reach far enough, without a round through every cache group.

Not a defect of results but of time: for each running sequence of each step v1/core/kv_cache_manager.py:371 (`allocate_slots`) frees,
counts, allocates and caches with the manager of every group, a seventh of a step of 256 sequences. Where no blocks are kept for others,
and a group's are those of full attention or of Mamba states that stay in their place, there is nothing to do until a block is full.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager, MambaManager
from vllm.v1.request import Request


def _stays(manager: Any, longest: int) -> bool:
    """Whether the manager's blocks of a sequence only ever grow, by its length alone.

    A Mamba state that moves on to a second block leaves the first one.
    """
    if type(manager) is MambaManager:
        return manager.mamba_cache_mode == "none" and manager.block_size >= longest
    return type(manager) is FullAttentionManager


def _reach(manager: Any, request: str) -> int:
    """Tokens that the sequence's blocks are enough for."""
    return (len(manager.req_to_blocks.get(request, ())) - getattr(manager, "num_speculative_blocks", 0)) * manager.block_size


def mend() -> None:
    upstream = KVCacheManager.allocate_slots

    def allocate(self: KVCacheManager, request: Request, num_new_tokens: int, *rest: Any, num_lookahead_tokens: int = 0,
                 **named: Any) -> KVCacheBlocks | None:
        if not rest and not named and num_new_tokens > 0 and not self.enable_caching:  # a sequence that runs
            managers = self.coordinator.single_type_managers
            last = min(request.num_computed_tokens + num_new_tokens + num_lookahead_tokens, self.max_model_len)
            if all(_stays(manager, self.max_model_len) and _reach(manager, request.request_id) >= last for manager in managers):
                return self.empty_kv_cache_blocks
        return upstream(self, request, num_new_tokens, *rest, num_lookahead_tokens=num_lookahead_tokens, **named)

    KVCacheManager.allocate_slots = allocate
