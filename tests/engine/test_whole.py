"""Shards and the whole: where the part that a rank holds lies."""

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from stagecraft.engine.whole import _place


def test_a_shard_that_lacks_the_experts_dimension_is_one_element_of_it():
    """As Transformer Engine keeps them: a matrix for every expert, in a checkpoint one tensor of all."""
    experts = torch.arange(4 * 6 * 5).view(4, 6, 5)
    for expert in range(4):
        for half in range(2):
            mine = experts[expert, 3 * half:3 * half + 3]
            shard = ShardedTensor.from_rank_offsets("experts", mine, (0, expert, 4), (1, half, 2), prepend_axis_num=1)
            assert torch.equal(experts[_place(shard.global_offset, shard.local_shape)].view_as(mine), mine)
