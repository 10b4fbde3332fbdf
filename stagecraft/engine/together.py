"""Work that every rank does its part of, and that fails on all ranks if it fails on one."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

FAILURES = (Exception, CheckpointException)  # the latter is a BaseException


def together(work: Callable[[], Any] | None) -> list[Any]:
    """What `work` returned on every rank, after all have done it.

    Raises:
        OSError: it failed on a rank, with the reason and the errno of the first.
    """
    outcome: tuple[Any, str, int | None] = (None, "", None)
    try:
        outcome = (work() if work else None, "", None)
    except FAILURES as error:
        met = _met(error)
        outcome = (None, f"{type(met).__name__}: {met}"[:300], getattr(met, "errno", None))
    outcomes: list[tuple[Any, str, int | None]] = [(None, "", None)] * dist.get_world_size()
    dist.all_gather_object(outcomes, outcome)
    for rank, (_, failure, number) in enumerate(outcomes):
        if failure:
            failed = OSError(f"rank {rank}: {failure}")
            failed.errno = number
            raise failed
    return [result for result, _, _ in outcomes]


def mend_of(failure: OSError) -> str:
    """What to do about what `together` raised."""
    return "make room and start again" if failure.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that and start again"


def _met(error: BaseException) -> BaseException:
    """The error that says what happened: torch wraps what a rank's writer met in its own traceback."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    while error.__cause__ is not None:
        error = error.__cause__
    return error
