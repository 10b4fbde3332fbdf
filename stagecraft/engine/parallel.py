"""Process groups: one process on a laptop, torchrun's everywhere else; the same calls on gloo and NCCL."""

from __future__ import annotations

import os
from typing import Any

from stagecraft.megatron_cpu import ON_CPU

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.moe.moe_logging import destroy_moe_metrics_tracker
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

from stagecraft.contract.errors import UserError
from stagecraft.engine.host_memory import keep_pages
from stagecraft.engine.layout import Layout

ONE = Layout(tensor=1, pipeline=1, context=1, expert=1)


def initialize(seed: int, layout: Layout = ONE) -> None:
    """Join the process group (of one, outside torchrun), build the parallel groups and seed every generator.

    Raises:
        UserError: the layout does not divide the number of ranks.
    """
    if not dist.is_initialized():
        if ON_CPU:
            keep_pages()
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        if "RANK" in os.environ:
            if not ON_CPU:
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("gloo" if ON_CPU else "nccl")
        else:
            dist.init_process_group("gloo" if ON_CPU else "nccl", store=dist.HashStore(), rank=0, world_size=1)
    layout.data(dist.get_world_size())
    if not parallel_state.is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor, pipeline_model_parallel_size=layout.pipeline,
            context_parallel_size=layout.context, expert_model_parallel_size=layout.expert, expert_tensor_parallel_size=1)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def sizes() -> dict[str, Any]:
    """The groups' sizes as megatron-core's TransformerConfig names them."""
    tensor, pipeline = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_pipeline_model_parallel_world_size()
    return {
        "tensor_model_parallel_size": tensor, "sequence_parallel": tensor > 1, "pipeline_model_parallel_size": pipeline,
        "variable_seq_lengths": pipeline > 1, "context_parallel_size": parallel_state.get_context_parallel_world_size(),
        "expert_model_parallel_size": parallel_state.get_expert_model_parallel_world_size(),
        "expert_tensor_parallel_size": 1,
    }


def share(parts: int, where: str) -> tuple[int, int]:
    """(first, how many) of a step's `parts` that are this data-parallel rank's.

    A checkpoint does not say how many ranks wrote it: any count that divides the parts goes on from it.

    Raises:
        UserError: they cannot be divided evenly.
    """
    ranks = parallel_state.get_data_parallel_world_size()
    if parts % ranks:
        raise UserError(f"{parts} parts of a step cannot be shared evenly by {ranks} data-parallel ranks", where=where,
                        mend=f"start a number of ranks that divides {parts}, or choose a multiple of {ranks}")
    each = parts // ranks
    return parallel_state.get_data_parallel_rank() * each, each


def leave_groups() -> None:
    """Leave the parallel groups, and what megatron keeps by the groups, layers and depths of the first model: MTP and balancing losses."""
    MTPLossLoggingHelper.tracker.clear()
    destroy_moe_metrics_tracker()
    if parallel_state.is_initialized():
        parallel_state.destroy_model_parallel()


def shutdown() -> None:
    """Leave the parallel groups and the process group."""
    leave_groups()
    if dist.is_initialized():
        dist.destroy_process_group()
