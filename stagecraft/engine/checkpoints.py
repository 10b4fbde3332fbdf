"""Resumable checkpoints inside a stage: megatron-core's distributed format, renamed into place when whole, the newest kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch.distributed as dist
from torch import nn

from stagecraft.contract.errors import UserError
from stagecraft.contract.files import digest_of, sha256
from stagecraft.engine.parts import STATE, Part
from stagecraft.engine.replicas import Reader, divide_writing
from stagecraft.engine.saving import Saver, sharded
from stagecraft.engine.together import FAILURES, mend_of, together
from stagecraft.engine.trainer import Trainer


def save(directory: Path, trainer: Trainer, keep: int = 2) -> None:
    """Save model, optimizer and schedule as `directory/step-N` and wait for it; all but the newest `keep` are removed then, not before.

    Raises:
        UserError: it could not be written, as on a full disk; what was there is untouched.
    """
    saver = Saver(directory, keep)
    saver.save(trainer)
    saver.finish()


def resume(directory: Path, trainer: Trainer, note: Callable[[str], None] = lambda _: None) -> dict[str, Any] | None:
    """Load the newest whole checkpoint, if there is one; returns the `extra` it was saved with.

    The layout of the ranks may be another one than it was saved in. A damaged checkpoint is told of by `note`, gets another name
    and gives way to the one before it.

    Raises:
        UserError: there are checkpoints, but none that is whole; or a whole one does not fit this model.
    """
    first = dist.get_rank() == 0
    # One rank looks: on a network's file system the others may not see the newest yet, and would go on from another.
    patterns = ("step-*", "damaged-step-*")
    found, damaged = together((lambda: [sorted(directory.glob(pattern), reverse=True) for pattern in patterns]) if first else None)[0]
    for checkpoint in found:
        damage = [what for what in together(lambda checkpoint=checkpoint: _damage(checkpoint)) if what]
        if not damage:
            return _load(checkpoint, trainer)
        note(f"checkpoint {checkpoint} is damaged ({damage[0]}); it is now damaged-{checkpoint.name}, the one before it is tried")
        together((lambda checkpoint=checkpoint: _set_aside(checkpoint)) if first else None)
    if damage := {path.name.removeprefix("damaged-") for path in (*found, *damaged)}:  # of this start, or of one before
        raise UserError(f"no intact checkpoint is left ({len(damage)} damaged)", where=str(directory), mend="delete them to start over")
    return None


def save_weights(path: Path, module: nn.Module) -> None:
    """Save the weights alone, of all ranks, as the directory `path`; what stood there is replaced.

    Raises:
        UserError: they could not be written.
    """
    part, first = Part(path.with_name(f".{path.name}.tmp")), dist.get_rank() == 0

    def begin() -> None:
        shutil.rmtree(part.directory, ignore_errors=True)
        part.directory.mkdir(parents=True)

    def plan() -> None:
        state = module.sharded_state_dict(prefix="")
        divide_writing(state)
        part.plan(state)

    try:
        together(begin if first else None)
        together(plan)
        part.write()
        part.complete({}, path)
    except OSError as error:
        if first:
            shutil.rmtree(part.directory, ignore_errors=True)
        raise UserError(f"weights cannot be written: {error}", where=str(path), mend=mend_of(error)) from error


def load_weights(path: Path, module: nn.Module, reader: Reader | None = None) -> None:
    """Take over what `save_weights` wrote, under whatever layout.

    Args:
        reader: of this module's weights alone, where they are read more than once.

    Raises:
        UserError: it is not what was written.
    """
    for damage in together(lambda: _damage(path)):
        if damage:
            raise UserError(f"damaged weights: {damage}", where=str(path), mend=f"delete {path.parent} to go on without what it holds")
    module.load_state_dict((reader or Reader()).read(module.sharded_state_dict(prefix=""), path))


def _load(checkpoint: Path, trainer: Trainer) -> dict[str, Any]:
    try:
        state = json.loads((checkpoint / STATE).read_text())
        loaded = Reader().read(sharded(trainer), checkpoint)
        trainer.module.load_state_dict(loaded["model"])
        for name, moments in trainer.moments().items():
            for moment, tensor in moments.items():
                tensor.copy_(loaded["optimizer"][name][moment])
        trainer.scheduler.load_state_dict(state["scheduler"])
        trainer.go_on_from(state["step"], state["updates"])
    except FAILURES as error:
        raise UserError(f"unreadable checkpoint: {type(error).__name__}: {str(error)[:200]}", where=str(checkpoint),
                        mend="delete this directory to go on from the one before it") from error
    return state["extra"]


def _damage(checkpoint: Path) -> str:
    """What is wrong with this rank's share of a checkpoint's files; "" if nothing."""
    try:
        state = json.loads((checkpoint / STATE).read_text())
        digests, digest = state["sha256"], state.pop("digest")
        if digest_of(state) != digest:
            return f"{STATE} is not what was written"
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
