"""Process groups: one process on a laptop, torchrun's everywhere else; the same calls on gloo and NCCL."""

from __future__ import annotations

import gc
import os
from contextlib import suppress
from datetime import timedelta
from math import ceil
from typing import Any

from stagecraft.megatron_cpu import ON_CPU

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.moe.moe_logging import destroy_moe_metrics_tracker

from stagecraft.contract.errors import UserError
from stagecraft.engine.host_memory import keep_pages
from stagecraft.engine.launch import MET, local_world_size
from stagecraft.engine.layout import Layout, divide

ONE = Layout(tensor=1, pipeline=1, context=1, expert=1)


def initialize(seed: int, layout: Layout = ONE, timeout: timedelta | None = None) -> None:
    """Join the process group (of one, outside torchrun), build the parallel groups and seed every generator.

    Args:
        timeout: how long a rank waits for the others; else PyTorch's, of NCCL ten minutes, and of megatron-core's groups thirty.

    Raises:
        UserError: as `join`; the layout does not divide the number of ranks.
    """
    join(timeout)
    layout.data(dist.get_world_size())
    if not parallel_state.is_initialized():
        minutes = {"distributed_timeout_minutes": ceil(timeout / timedelta(minutes=1))} if timeout else {}
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor, pipeline_model_parallel_size=layout.pipeline,
            context_parallel_size=layout.context, expert_model_parallel_size=layout.expert, expert_tensor_parallel_size=1, **minutes)
    # Or layers at the same place of two stages would begin alike. megatron-core adds up to 100 times an expert's or tensor rank itself.
    seed += 1_000_000 * parallel_state.get_pipeline_model_parallel_rank()
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def join(timeout: timedelta | None = None) -> None:
    """Join the process group, if that was not done; arguments as for `initialize`.

    Raises:
        UserError: this machine has more ranks than GPUs, which NCCL cannot divide among them.
    """
    if dist.is_initialized():
        return
    if not ON_CPU and (here := local_world_size()) > (gpus := torch.cuda.device_count()):
        raise UserError(f"{here} ranks for the {gpus} GPUs of this machine: each needs one of its own", where="processes",
                        mend=f"set it to {gpus}, or have torchrun start no more on a node")
    if ON_CPU:
        keep_pages()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "RANK" in os.environ:
        if not ON_CPU:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("gloo" if ON_CPU else "nccl", timeout=timeout)
    else:
        dist.init_process_group("gloo" if ON_CPU else "nccl", timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
    MET.set()


def layout() -> Layout:
    """The layout that this rank is part of; ONE before there are groups."""
    if not parallel_state.is_initialized():
        return ONE
    return Layout(tensor=parallel_state.get_tensor_model_parallel_world_size(),
                  pipeline=parallel_state.get_pipeline_model_parallel_world_size(),
                  context=parallel_state.get_context_parallel_world_size(), expert=parallel_state.get_expert_model_parallel_world_size())


def sizes() -> dict[str, Any]:
    """The groups' sizes as megatron-core's TransformerConfig names them."""
    own = layout()
    return {"tensor_model_parallel_size": own.tensor, "sequence_parallel": own.tensor > 1, "pipeline_model_parallel_size": own.pipeline,
            "variable_seq_lengths": own.pipeline > 1, "context_parallel_size": own.context, "expert_model_parallel_size": own.expert,
            "expert_tensor_parallel_size": 1}


def share(parts: int, where: str) -> tuple[int, int]:
    """(first, how many) of a step's `parts` that are this data-parallel rank's.

    A checkpoint does not say how many ranks wrote it: any count that divides the parts goes on from it.

    Raises:
        UserError: they cannot be divided evenly.
    """
    each = divide(parts, parallel_state.get_data_parallel_world_size(), where)
    return parallel_state.get_data_parallel_rank() * each, each


def leave_groups() -> None:
    """Leave the parallel groups, and drop the balancing losses that megatron-core keeps for the groups and layers of the first model.

    A trainer that nothing uses any more is freed too, before another one is built: its hooks and its config refer back to it, so only the
    garbage collector can free it.
    """
    destroy_moe_metrics_tracker()
    if parallel_state.is_initialized():
        groups = parallel_state._global_process_group_list[1:]  # the first stands for that of all ranks
        parallel_state.destroy_model_parallel()
        for group in groups:  # megatron-core leaves those of NCCL to themselves, with what buffers they have on the GPU
            with suppress(ValueError):  # those of gloo it has destroyed
                dist.destroy_process_group(group)
    for _ in range(2):  # the second frees what was still held by objects that the first one frees
        gc.collect()
    torch.cuda.empty_cache()


def leave_layout() -> None:
    """Leave the parallel groups for those of another layout. The process group of one rank goes too; one of several stays, for gloo does
    not come up twice under torchrun."""
    leave_groups()
    if dist.is_initialized() and dist.get_world_size() == 1:
        dist.destroy_process_group()


def shutdown() -> None:
    """Leave the parallel groups and the process group."""
    leave_groups()
    if dist.is_initialized():
        dist.destroy_process_group()
