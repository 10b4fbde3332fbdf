"""The optimizer's state divided over the data-parallel ranks, a parameter as a whole on one of them (ZeRO, stage 1; arXiv 1910.02054).

megatron-core's own distributed optimizer cuts a buffer of all parameters into equal pieces. Whole parameters keep their names in
checkpoints, whatever the layout, and Muon its matrices.
"""

from __future__ import annotations

from collections import defaultdict

import stagecraft.megatron_cpu  # noqa: F401

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.layer_wise_optimizer import LayerWiseDistributedOptimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


class ShardedOptimizer(LayerWiseDistributedOptimizer):
    """megatron-core's layer-wise optimizer: every rank steps its own parameters, then all have those of all."""

    @torch.no_grad()
    def allgather_params(self) -> None:
        """In place of megatron-core's: parameters may have more than one dtype, and gloo gathers equal sizes only."""
        for owned, group in ((self.dp_cp_params_list, self.dp_cp), (self.expt_dp_params_list, self.expt_dp)):
            for rank, parameters in enumerate(owned or ()):
                by_dtype: dict[torch.dtype, list[Tensor]] = defaultdict(list)
                for parameter in parameters:
                    by_dtype[parameter.dtype].append(parameter)
                for same in by_dtype.values():
                    flat = _flatten_dense_tensors(same)
                    dist.broadcast(flat, group=group, group_src=rank)
                    if rank != group.rank():
                        for parameter, values in zip(same, _unflatten_dense_tensors(flat, same)):
                            parameter.copy_(values)


def build_optimizer(config: OptimizerConfig, model: DistributedDataParallel) -> MegatronOptimizer:
    """megatron-core's optimizer of a model on this rank: for all its parameters, or its share where there are data-parallel ranks."""
    groups = ProcessGroupCollection.use_mpu_process_groups()
    if groups.dp_cp.size() == 1:
        return get_megatron_optimizer(config, [model])
    bf16, config.bf16 = config.bf16, False  # no float32 values of what is not this rank's
    parts = get_megatron_optimizer(config, [model]).chained_optimizers
    config.bf16 = bf16
    optimizer = ShardedOptimizer([part.optimizer for part in parts] if config.bf16 else parts, config, groups)
    for part, plain in zip(optimizer.chained_optimizers, parts):
        part.tp_group, part.expert_tp_group = plain.tp_group, plain.expert_tp_group
    return optimizer
