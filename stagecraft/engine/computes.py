"""What a training was asked to compute in, what computes, and on what: for the manifest and the run's record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import stagecraft.megatron_cpu  # noqa: F401

import torch.distributed as dist

from stagecraft.contract.runlog import RunLog
from stagecraft.engine.trainer import Trainer
from stagecraft.model.hardware import Hardware
from stagecraft.model.ladder import Rung, ladder, resolve


def rungs_of(trainer: Trainer, tensor: int | None = None) -> list[Rung]:
    """Requested and actual format per class of the trainer's layers.

    Args:
        tensor: tensor-parallel ranks that divide a layer, if not as many as now.

    Raises:
        UserError: the hardware does not take a size that a layer has on a rank.
    """
    config = trainer.config
    return ladder(resolve(trainer.architecture, config.quant_recipe.precision, Hardware.of(config), mtp=trainer.mtp,
                          dtype=config.params_dtype, tensor=tensor or config.tensor_model_parallel_size))


def record(log: RunLog, trainer: Trainer, requested: str, rungs: Sequence[Rung] | None = None) -> None:
    """Record it.

    Args:
        requested: the recipe, or the dtype where nothing is quantised.
        rungs: those of `rungs_of`, if they are known.
    """
    rungs = rungs_of(trainer) if rungs is None else rungs
    log.record(precision_requested=requested, precision_actual="; ".join(sorted({rung.actual for rung in rungs})),
               precision_ladder=[asdict(rung) for rung in rungs], device=Hardware.of(trainer.config).name, processes=dist.get_world_size())
