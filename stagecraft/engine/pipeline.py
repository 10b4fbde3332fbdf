"""Microbatches through the stages of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from stagecraft.engine.batch import Batch

Step = Callable[[Batch, nn.Module], tuple[Tensor, Callable[..., Any]]]


def through(model: nn.Module, batches: Sequence[Batch], step: Step, *, forward_only: bool, collect: bool = False) -> list[Any]:
    """What each microbatch comes to, on the last stage; nothing on the others.

    Args:
        batches: whole ones; every context-parallel rank computes its part.
        step: (part of a microbatch, model) -> output of this stage's layers, and what the last stage makes of it: called with the output,
            and with `non_loss_data=True` where that is to be collected.

    Raises:
        ValueError: a row cannot be divided among the context-parallel ranks.
    """
    parts = [batch.part() for batch in batches]  # what is refused is refused by all stages, before any waits for another
    return get_forward_backward_func()(
        forward_step_func=lambda iterator, model: step(next(iterator), model), data_iterator=iter(parts), model=[model],
        num_microbatches=len(batches), seq_length=batches[0].tokens.shape[1], micro_batch_size=batches[0].tokens.shape[0],
        forward_only=forward_only, collect_non_loss_data=collect)
