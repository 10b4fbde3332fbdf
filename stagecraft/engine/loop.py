"""The supervised training loop: resume, step, log, checkpoint. Every rank runs it; only rank 0 has a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from stagecraft.contract.runlog import RunLog
from stagecraft.engine import checkpoints
from stagecraft.engine.trainer import StepResult, Trainer


def run(trainer: Trainer, step: Callable[[], StepResult], *, name: str, work: Path, checkpoint_every: int, log: RunLog | None) -> float:
    """Train from the newest checkpoint below `work` to the last step of the schedule.

    Args:
        step: does one optimizer step.
        checkpoint_every: steps between checkpoints.

    Returns:
        tokens with a loss per second, over all ranks, of the steps done now; 0 if there were none.
    """
    directory, steps = work / "checkpoints", trainer.optimization.steps
    checkpoints.resume(directory, trainer)
    if log:
        log.rewind(trainer.steps_done)
    started, tokens = time.monotonic(), 0
    with log.bar(name, steps, done=trainer.steps_done) if log else nullcontext() as bar:
        while trainer.steps_done < steps:
            result = step()
            tokens += result.tokens
            if log:
                mtp = {f"mtp_loss_{depth}": loss for depth, loss in enumerate(result.mtp_losses, 1)}
                log.step(trainer.steps_done, loss=result.loss, lr=result.lr, grad_norm=result.grad_norm, **mtp)
                if result.diagnostics:
                    log.step(trainer.steps_done, curve="diagnostics", **result.diagnostics)
                bar.advance(loss=result.loss, tokens_per_second=tokens / (time.monotonic() - started))
            if trainer.steps_done % checkpoint_every == 0 and trainer.steps_done < steps:
                checkpoints.save(directory, trainer)
    return tokens / (time.monotonic() - started)
