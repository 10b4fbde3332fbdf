"""Resumable checkpoints inside a stage: megatron-core's distributed format, renamed into place when whole, the newest kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from stagecraft.contract.errors import UserError
from stagecraft.contract.files import sha256, write_json
from stagecraft.engine.trainer import Trainer

_STATE = "trainer.json"
_Failure = (Exception, CheckpointException)  # the latter is a BaseException


def save(directory: Path, trainer: Trainer, extra: dict[str, Any] | None = None, keep: int = 2) -> None:
    """Save model, optimizer and schedule as `directory/step-N`; all but the newest `keep` are removed then, not before.

    Raises:
        UserError: it could not be written, as on a full disk; what was there is untouched.
    """
    final = directory / f"step-{trainer.steps_done:08d}"
    temporary = directory / f".{final.name}.tmp"
    first = dist.get_rank() == 0

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def finish() -> None:
        write_json(temporary / _STATE, {"step": trainer.steps_done, "scheduler": trainer.scheduler.state_dict(), "extra": extra or {},
                                        "sha256": {name: digest for part in digests for name, digest in part.items()}})
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in sorted(directory.glob("step-*"))[:-keep]:
            shutil.rmtree(old, ignore_errors=True)

    try:
        _together(begin if first else None)
        _together(lambda: dist_checkpointing.save(_sharded(trainer), temporary))
        digests = _together(lambda: {path.name: sha256(path) for path in _of_this_rank(temporary)})
        _together(finish if first else None)
    except OSError as error:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(directory).free / 1e9
        older = max((path.name for path in directory.glob("step-*")), default="the beginning")
        raise UserError(f"checkpoint of step {trainer.steps_done} cannot be written ({free:.1f} GB are free there): {error}",
                        where=str(directory), mend=f"make room and start again: it goes on from {older}") from error


def resume(directory: Path, trainer: Trainer, note: Callable[[str], None] = lambda _: None) -> dict[str, Any] | None:
    """Load the newest whole checkpoint, if there is one; returns the `extra` it was saved with.

    The layout of the ranks may be another one than it was saved in. A damaged checkpoint is told of by `note`, gets another name
    and gives way to the one before it.

    Raises:
        UserError: there are checkpoints, but none that is whole; or a whole one does not fit this model.
    """
    found = sorted(directory.glob("step-*"), reverse=True)
    for checkpoint in found:
        damage = [what for what in _together(lambda checkpoint=checkpoint: _damage(checkpoint)) if what]
        if not damage:
            return _load(checkpoint, trainer)
        note(f"checkpoint {checkpoint} is damaged ({damage[0]}); it is now damaged-{checkpoint.name}, the one before it is tried")
        _together((lambda checkpoint=checkpoint: _set_aside(checkpoint)) if dist.get_rank() == 0 else None)
    if found:
        raise UserError(f"none of its {len(found)} checkpoints is whole", where=str(directory), mend="delete them to begin anew")
    return None


def save_weights(path: Path, module: nn.Module) -> None:
    """Save the weights alone, of all ranks, as the directory `path`; what stood there is replaced.

    Raises:
        UserError: they could not be written.
    """
    temporary, first = path.with_name(f".{path.name}.tmp"), dist.get_rank() == 0

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def finish() -> None:
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)

    try:
        _together(begin if first else None)
        _together(lambda: dist_checkpointing.save(module.sharded_state_dict(prefix=""), temporary))
        _together(finish if first else None)
    except OSError as error:
        raise UserError(f"weights cannot be written: {error}", where=str(path), mend="make room and start again") from error


def load_weights(path: Path, module: nn.Module) -> None:
    """Take over what `save_weights` wrote, under whatever layout."""
    module.load_state_dict(dist_checkpointing.load(module.sharded_state_dict(prefix=""), path))


def _load(checkpoint: Path, trainer: Trainer) -> dict[str, Any]:
    try:
        state = json.loads((checkpoint / _STATE).read_text())
        loaded = dist_checkpointing.load(_sharded(trainer), checkpoint)
        trainer.module.load_state_dict(loaded["model"])
        for name, moments in trainer.moments().items():
            for moment, tensor in moments.items():
                tensor.copy_(loaded["optimizer"][name][moment])
        trainer.scheduler.load_state_dict(state["scheduler"])
    except _Failure as error:
        raise UserError(f"unreadable checkpoint: {type(error).__name__}: {str(error)[:200]}", where=str(checkpoint),
                        mend="delete this directory to go on from the one before it") from error
    trainer.go_on_from(state["step"])
    return state["extra"]


def _damage(checkpoint: Path) -> str:
    """What is wrong with this rank's share of a checkpoint's files; "" if nothing."""
    try:
        digests = json.loads((checkpoint / _STATE).read_text())["sha256"]
        for name in sorted(digests)[dist.get_rank()::dist.get_world_size()]:
            if sha256(checkpoint / name) != digests[name]:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _set_aside(checkpoint: Path) -> None:
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


def _of_this_rank(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_file())[dist.get_rank()::dist.get_world_size()]


def _together(work: Callable[[], Any] | None) -> list[Any]:
    """What `work` returned on every rank, after all have done it.

    Raises:
        OSError: it failed on a rank, with the reason of the first.
    """
    outcome: tuple[Any, str] = (None, "")
    try:
        outcome = (work() if work else None, "")
    except _Failure as error:
        outcome = (None, _reason(error))
    outcomes: list[tuple[Any, str]] = [(None, "")] * dist.get_world_size()
    dist.all_gather_object(outcomes, outcome)
    for rank, (_, failure) in enumerate(outcomes):
        if failure:
            raise OSError(f"rank {rank}: {failure}")
    return [result for result, _ in outcomes]


def _reason(error: BaseException) -> str:
    """The line of an error that says what happened: torch wraps what a rank's writer met in its own traceback."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"[:300]


def _sharded(trainer: Trainer) -> dict[str, Any]:
    """Weights and moments by the names and places of the weights.

    megatron-core's own `optimizer.sharded_state_dict` names them by the optimizer they are in, which depends on the layout: with
    tensor or expert parallelism the experts have one of their own.
    """
    model = trainer.module.sharded_state_dict(prefix="")
    moments = {name: {moment: make_sharded_optimizer_tensor(model[name], tensor, f"optimizer.{moment}")
                      for moment, tensor in moments.items()} for name, moments in trainer.moments().items()}
    return {"model": model, "optimizer": moments}
