"""The routed experts of one rank as two stacked weights: one quantisation and one pass per product instead of one per expert."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from stagecraft.model.activation import squared_relu
from stagecraft.model.layers import InFormat
from stagecraft.model.products import GroupedProduct

ALIGNMENT = 32  # rows per expert are padded to this when quantised: no block of a weight gradient spans two experts


class GroupedExperts(InFormat, MegatronModule):
    """Squared-ReLU experts without gate: y = (relu(x up^T)^2 * p) down^T.

    `up` is [experts, ffn, latent], `down` [experts, latent, ffn]. Expert-tensor parallelism is not supported (it is 1 on gloo).
    """

    def __init__(self, num_local_experts: int, config: Any, pg_collection: Any = None, name: str | None = None):
        super().__init__(config=config)
        if config.expert_tensor_parallel_size not in (None, 1) or pg_collection.expt_tp.size() > 1:
            raise NotImplementedError("expert tensor parallelism: set it to 1")
        self.ep_group, self.dp_group = pg_collection.ep, pg_collection.expt_dp
        self.num_local_experts = num_local_experts
        latent, ffn = config.moe_latent_size or config.hidden_size, config.moe_ffn_hidden_size
        self.up = self._weight((ffn, latent), config.init_method)
        self.down = self._weight((latent, ffn), config.output_layer_init_method)

    def _weight(self, shape: tuple[int, int], init_method: Any) -> nn.Parameter:
        """Initialised whole and then cut, so that it does not depend on the number of expert-parallel ranks."""
        whole = torch.empty(self.num_local_experts * self.ep_group.size(), *shape, dtype=self.config.params_dtype,
                            device=torch.cuda.current_device())
        if self.config.perform_initialization:
            init_method(whole)
        start = self.num_local_experts * self.ep_group.rank()
        weight = nn.Parameter(whole[start:start + self.num_local_experts].clone())
        # Reduced over the expert data-parallel group where that is another one: experts are not divided by tensor parallelism.
        weight.allreduce = self.ep_group.size() == self.config.tensor_model_parallel_size == 1
        return weight

    def forward(self, x: Tensor, tokens_per_expert: Tensor, probs: Tensor) -> tuple[Tensor, None]:
        """x [rows, latent] sorted by expert, tokens_per_expert [experts], probs [rows] -> [rows, latent]."""
        precision = self.precision if self.training else None
        counts = tokens_per_expert.tolist()
        places = None
        if precision is not None:
            aligned = [-(-count // ALIGNMENT) * ALIGNMENT for count in counts]
            starts = torch.tensor([0, *accumulate(a - c for a, c in zip(aligned, counts))][:-1], device=x.device)
            places = torch.arange(len(x), device=x.device) + starts.repeat_interleave(tokens_per_expert.to(x.device))
            counts, rows = aligned, sum(aligned)
            x = x.new_zeros(rows, x.shape[1]).index_copy(0, places, x)
            probs = probs.new_zeros(rows).index_copy(0, places, probs)
        bounds = [0, *accumulate(counts)]
        hidden = GroupedProduct.apply(x, self.up, bounds, precision, self.layer_class)
        y = GroupedProduct.apply(squared_relu(hidden, probs), self.down, bounds, precision, self.layer_class)
        return (y if places is None else y.index_select(0, places)), None

    def backward_dw(self) -> None:
        """The weight gradients are not delayed here."""

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict[str, Any]:
        shard = (len(sharded_offsets), self.ep_group.rank(), self.ep_group.size())
        return {
            f"{prefix}{name}": ShardedTensor.from_rank_offsets(
                f"{prefix}{name}", weight, *sharded_offsets, shard, replica_id=(0, 0, self.dp_group.rank()),
                prepend_axis_num=len(sharded_offsets))
            for name, weight in (("up", self.up), ("down", self.down))
        }
