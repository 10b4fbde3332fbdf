"""Data-parallel ranks that hold the same tensors each write and read a share of them, and the files hold each once.

By default the first of them writes all that they share, and each reads all that it needs: 1,024 GPUs with 12 GB of weights each would
read 12 TB, where the files of the 120B model have 0.25.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import extract_matching_values, merge
from megatron.core.dist_checkpointing.exchange_utils import ShardDistribution, determine_main_replica_uniform_distribution
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    distribute_main_replicas_with_precomputed_distribution,
)
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy


def divide_writing(state: dict[str, Any], before: ShardDistribution | None = None) -> ShardDistribution | None:
    """Choose one of the ranks that hold a tensor to write it, so that all write about as much; `state`'s replica ids say which afterwards.

    Args:
        state: sharded tensors of megatron-core's distributed checkpoints, the same structure on every rank of a layout.
        before: what this returned for a state of the same structure; the ranks then need not ask each other.

    Returns:
        The division; None if there is but one rank.
    """
    apply_factories(state)
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    division = before or determine_main_replica_uniform_distribution(state, group)
    distribute_main_replicas_with_precomputed_distribution(state, group, division)
    return division


class Reader:
    """Reads distributed checkpoints into states of one structure, under one layout.

    The ranks read a share each and send it to those that hold the same: of experts, which fewer ranks hold than the rest, to these alone.
    What falls to whom is worked out at the first checkpoint, by which time and messages grow faster than the ranks.
    """

    def __init__(self) -> None:
        everything = parallel_state.get_data_parallel_group(with_context_parallel=True)
        experts = parallel_state.get_expert_data_parallel_group()
        self._strategy = FullyParallelLoadStrategyWrapper(TorchDistLoadShardedStrategy(), everything, do_cache_distribution=True)
        if dist.get_process_group_ranks(experts) != dist.get_process_group_ranks(everything):
            self._strategy = _ExpertsApart(self._strategy, experts)

    def read(self, state: dict[str, Any], directory: Path) -> dict[str, Any]:
        """What the checkpoint holds of `state`."""
        return dist_checkpointing.load(state, directory, self._strategy)


class _ExpertsApart(FullyParallelLoadStrategyWrapper):
    """Reads as `rest` does, but for the experts, which the ranks of a group of their own share."""

    def __init__(self, rest: FullyParallelLoadStrategyWrapper, experts: dist.ProcessGroup):
        super().__init__(rest.base_strategy, experts, do_cache_distribution=True)
        self._rest = rest

    def load(self, sharded_state_dict: dict[str, Any], *args: Any, **options: Any) -> dict[str, Any]:
        experts, rest = extract_matching_values(sharded_state_dict, _is_of_experts)
        return merge(self._rest.load(rest, *args, **options), super().load(experts, *args, **options))


def _is_of_experts(shard: Any) -> bool:
    return isinstance(shard, ShardedTensor) and ".experts." in shard.key
