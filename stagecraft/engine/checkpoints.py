"""Resumable checkpoints inside a stage: megatron-core's distributed format, renamed into place when whole, the newest kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from torch.distributed.checkpoint.api import CheckpointException

from stagecraft.contract.errors import UserError
from stagecraft.contract.files import write_json
from stagecraft.engine.trainer import Trainer

KEEP = 2
_STATE = "trainer.json"


def save(directory: Path, trainer: Trainer, extra: dict[str, Any] | None = None) -> None:
    """Save model, optimizer and schedule as `directory/step-N`; older ones than the newest two are removed."""
    final = directory / f"step-{trainer.steps_done:08d}"
    temporary = directory / f".{final.name}.tmp"
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(_sharded(trainer), temporary)
    dist.barrier()
    if dist.get_rank() == 0:
        write_json(temporary / _STATE, {"step": trainer.steps_done, "scheduler": trainer.scheduler.state_dict(), "extra": extra or {}})
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in sorted(directory.glob("step-*"))[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
    dist.barrier()


def resume(directory: Path, trainer: Trainer) -> dict[str, Any] | None:
    """Load the newest checkpoint, if there is one; returns the `extra` it was saved with.

    The layout of the ranks may be another one than it was saved in.

    Raises:
        UserError: the newest checkpoint cannot be read.
    """
    found = sorted(directory.glob("step-*"))
    if not found:
        return None
    newest = found[-1]
    try:
        state = json.loads((newest / _STATE).read_text())
        loaded = dist_checkpointing.load(_sharded(trainer), newest)
        trainer.module.load_state_dict(loaded["model"])
        for name, moments in trainer.moments().items():
            for moment, tensor in moments.items():
                tensor.copy_(loaded["optimizer"][name][moment])
        trainer.scheduler.load_state_dict(state["scheduler"])
    except (Exception, CheckpointException) as error:  # the latter is a BaseException
        raise UserError(f"unreadable checkpoint: {type(error).__name__}: {str(error)[:200]}", where=str(newest),
                        mend="delete this directory to go on from the one before it") from error
    trainer.go_on_from(state["step"])
    return state["extra"]


def _sharded(trainer: Trainer) -> dict[str, Any]:
    """Weights and moments by the names and places of the weights.

    megatron-core's own `optimizer.sharded_state_dict` names them by the optimizer they are in, which depends on the layout: with
    tensor or expert parallelism the experts have one of their own.
    """
    model = trainer.module.sharded_state_dict(prefix="")
    moments = {name: {moment: make_sharded_optimizer_tensor(model[name], tensor, f"optimizer.{moment}")
                      for moment, tensor in moments.items()} for name, moments in trainer.moments().items()}
    return {"model": model, "optimizer": moments}
