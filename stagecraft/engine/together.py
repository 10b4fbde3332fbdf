"""Work that every rank does its part of, and that fails on all ranks if it fails on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

FAILURES = (Exception, CheckpointException)  # the latter is a BaseException


def together(work: Callable[[], Any] | None) -> list[Any]:
    """What `work` returned on every rank, after all have done it.

    Raises:
        OSError: it failed on a rank, with the reason of the first.
    """
    outcome: tuple[Any, str] = (None, "")
    try:
        outcome = (work() if work else None, "")
    except FAILURES as error:
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
