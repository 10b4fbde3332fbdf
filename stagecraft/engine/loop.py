"""The supervised training loop: resume, step, log, checkpoint. Every rank runs it; only rank 0 has a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog
from stagecraft.engine import checkpoints
from stagecraft.engine.saving import Saver
from stagecraft.engine.trainer import StepResult, Trainer


def run(trainer: Trainer, step: Callable[[], StepResult], *, name: str, work: Path, checkpoint_every: int, log: RunLog | None,
        curve: str = "train", until: int | None = None, keep: int = 2, max_skipped: int = 0, beat: Callable[[int], None] = lambda _: None,
        between: Callable[[], None] = lambda: None, extra: Callable[[], dict[str, Any]] = dict) -> None:
    """Train from the newest whole checkpoint below `work` to the last step of the schedule, or to `until`; a checkpoint is left there.

    Args:
        step: does one optimizer step.
        curve: where losses are logged. A stage whose training is not alone has another than `train` for it, and that alone.
        checkpoint_every: steps between checkpoints, of which the newest `keep` stay; they are written while training goes on.
        max_skipped: steps in a row that may be skipped because the loss or gradient is not finite.
        beat: called before every step with how many are done.
        between: called after every step, before a checkpoint.
        extra: what else a checkpoint records, such as the position of the sampler; a run that resumes from it must give the same value.

    Raises:
        UserError: too many steps in a row were skipped, or all; a checkpoint cannot be written or read, or it was made with other data.
    """
    saver, steps = Saver(work / "checkpoints", keep), trainer.optimization.all_steps
    end = steps if until is None else until
    said = checkpoints.resume(saver.directory, trainer, log.note if log else lambda _: None)
    if said is not None and said != extra():
        raise UserError(f"the checkpoint of step {trainer.steps_done} was made with other data ({said}; now {extra()})",
                        where=str(saver.directory), mend="use the blends and batch sizes that it was made with, or delete it to start over")
    if log:
        log.rewind(trainer.steps_done, *(() if curve == "train" else (curve,)))
    skipped = 0
    with log.bar(name, steps, done=trainer.steps_done) if log else nullcontext() as bar:
        while trainer.steps_done < end:
            beat(trainer.steps_done)
            started = time.monotonic()
            result = step()
            seconds = time.monotonic() - started
            saver.poll()
            skipped = skipped + 1 if result.skipped else 0
            if skipped > max_skipped:
                saver.finish()
                raise too_many_skipped(result, trainer.steps_done, max_skipped, name)
            if log:
                _tell(log, curve, trainer.steps_done, result, seconds)
                bar.advance(loss=result.loss, tokens_per_second=result.tokens / seconds)
            between()
            if trainer.steps_done % checkpoint_every == 0 or trainer.steps_done == end:
                saver.save(trainer, extra())
        saver.finish()
    begin = 0 if end <= trainer.optimization.steps else trainer.optimization.steps  # of the schedule, or of what follows it
    if log and not any(row["step"] > begin for row in log.curve(curve)):
        raise UserError(f"none of the {end - begin} steps had a finite loss and gradient", where=name, mend="lower the learning rate")


def too_many_skipped(result: StepResult, step: int, most: int, name: str) -> UserError:
    """What ends a training called `name` whose step, after `most` that were skipped, had no finite loss and gradient either."""
    return UserError(f"loss {result.loss} and gradient norm {result.grad_norm} at step {step}, after {most} steps in a row that were "
                     "skipped for that", where=name, mend="lower the learning rate; or, to skip other data, change the seed")


def told_of_skipped(result: StepResult, step: int) -> str:
    """A line on a step that was skipped."""
    return f"step {step} is skipped: loss {result.loss}, gradient norm {result.grad_norm}"


def tokens_per_second(log: RunLog) -> float:
    """Tokens with a loss by the time of the steps that trained on them, over all ranks and all attempts."""
    rows = log.curve("speed")
    return sum(row["tokens"] for row in rows) / sum(row["seconds"] for row in rows)


def _tell(log: RunLog, curve: str, step: int, result: StepResult, seconds: float) -> None:
    if result.skipped:  # no point of the curve: a figure drawn from it would not be one
        log.note(told_of_skipped(result, step))
        return
    mtp = {f"mtp_loss_{depth}": loss for depth, loss in enumerate(result.mtp_losses, 1)}
    log.step(step, curve=curve, loss=result.loss, lr=result.lr, grad_norm=result.grad_norm, **mtp)
    if curve != "train":
        return
    log.step(step, curve="speed", tokens=result.tokens, seconds=seconds, tokens_per_second=result.tokens / seconds)
    if result.diagnostics:
        log.step(step, curve="diagnostics", **result.diagnostics)
