"""Data-parallel ranks that hold the same tensors each write and read a share of them, and the files hold each once.

By default the first of them writes all that they share, and each reads all that it needs: 1,024 GPUs with 12 GB of weights each would
read 12 TB, where the files of the 120B model have 0.25.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.exchange_utils import ShardDistribution, determine_main_replica_uniform_distribution
from megatron.core.dist_checkpointing.mapping import apply_factories
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


def read(state: dict[str, Any], directory: Path) -> dict[str, Any]:
    """What a distributed checkpoint holds of `state`: the ranks read a share each, and send it to those that hold the same."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return dist_checkpointing.load(state, directory, FullyParallelLoadStrategyWrapper(TorchDistLoadShardedStrategy(), group))
