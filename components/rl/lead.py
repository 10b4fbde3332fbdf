"""What the first rank does beside training: gets the completions, hands the weights over, keeps rollouts and the curve."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from torch import Tensor

from components.rl.generator import Job
from components.rl.loss import PolicyLoss
from components.rl.rollouts import Draw, Sample, lessons, means_by_family, weigh
from components.rl.sources import source_of_completions
from stagecraft.contract.files import write_atomic
from stagecraft.contract.runlog import RunLog
from stagecraft.engine.loop import told_of_skipped
from stagecraft.engine.trainer import StepResult

KEPT = ("rollouts.jsonl", "episodes.jsonl")  # answers to the corpus's prompts, conversations with environments


class Lead:
    """The first rank's end of the loop; for a step it calls `take`, `updated` and `handed_over`, in this order.

    Args:
        job: what the generators are to do; its `first` counts the steps that are done.
        weights: those after them.
        before: steps of the stages before, behind which this one's are counted.
        kept: rollouts that are in the files already.
    """

    def __init__(self, job: Job, weights: dict[str, Tensor], work: Path, before: int, kept: int, log: RunLog):
        self._params, self._job, self._before, self._log, self._kept = job.params, job, before, log, kept
        self._source = source_of_completions(job, weights)
        self._open = ExitStack()
        self._answers, self._episodes = (self._open.enter_context((work / name).open("a")) for name in KEPT)
        self._bar = self._open.enter_context(log.bar(work.name, job.params.steps, done=job.first))
        self._clock: list[float] = []
        self._draw = Draw([], 0.0)

    def take(self, step: int) -> list[Sample]:
        """What all ranks learn from in a step."""
        self._clock = [time.monotonic()]
        self._draw = self._source.take(step)
        self._clock.append(time.monotonic())
        weigh(self._draw.samples, self._params)
        return lessons(self._draw.samples, self._params)

    def updated(self) -> None:
        """The weights of this step are there."""
        self._clock.append(time.monotonic())

    def handed_over(self, done: int, weights: dict[str, Tensor], result: StepResult | None) -> None:
        """Hand over the weights after `done` steps, and log the last of them, whose update gave `result`."""
        self._source.hand_over(done, weights)
        self._clock.append(time.monotonic())
        step, samples = done - 1, self._draw.samples
        seconds = dict(zip(("seconds_wait", "seconds_update", "seconds_handover"), (b - a for a, b in pairwise(self._clock))))
        drawn, values = summary(samples, step, self._params.preferences.enabled), figures(result)
        if result and result.skipped:
            self._log.note(told_of_skipped(result, self._before + done))
        self._log.step(self._before + done, **drawn, **values, seconds_generate=self._draw.seconds, **seconds)
        share = self._params.rollouts_kept * done // self._params.steps  # as many of every step
        for sample in samples[:max(0, share - self._kept)]:
            (self._episodes if sample.messages else self._answers).write(json.dumps(sample.record(self._before + step)) + "\n")
            self._kept += 1
        self._answers.flush()
        self._episodes.flush()
        self._bar.advance(reward=drawn["reward"], **{key: values[key] for key in values if key == "mismatch"})

    def before_checkpoint(self, done: int) -> None:
        """Have what the next step is drawn from, if that is no more than older weights than the checkpoint's."""
        self._source.finish(done)

    def after_checkpoint(self, done: int) -> None:
        """Forget what was drawn for the steps before it, but for what healing learns from."""
        for path in self._job.kept.glob("*.jsonl"):
            if int(path.name[:8]) < min(done, self._params.steps - self._params.healing.rollouts):
                path.unlink()

    def finish(self) -> None:
        """After the last step."""
        self._source.close()

    def __enter__(self) -> Lead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()


def summary(samples: list[Sample], step: int, judged: bool) -> dict[str, float]:
    """Figures of one step's rollouts; `judged`: their rewards are a judge's, beside which stands what the verifiers say."""
    count = len(samples)
    return {
        "reward": sum(sample.reward for sample in samples) / count,
        "taught": sum(sample.advantage != 0 for sample in samples) / count,
        "finished": sum(sample.finished for sample in samples) / count,
        "malformed": sum(sample.malformed for sample in samples) / count,
        "tokens": sum(sum(sample.mask) for sample in samples),
        "staleness": step - min(sample.version for sample in samples),
        **means_by_family(samples),
        **({"verified": sum(sample.parts["verified"] for sample in samples) / count} if judged else {}),
    }


def figures(result: StepResult | None) -> dict[str, float]:
    """Of one update: loss, gradient norm, and means over the tokens it learnt from. Where nothing taught there are no such tokens, and a
    step that was skipped has no finite figures."""
    if result is None:
        return {"loss": 0.0, "grad_norm": 0.0}
    if result.skipped:
        return {}
    spoken = max(result.sums["spoken"], 1)
    return {"loss": result.loss, "grad_norm": result.grad_norm, **{name: result.sums[name] / spoken for name in PolicyLoss.REPORTED}}


def rewind_rollouts(path: Path, step: int) -> int:
    """Forget the rollouts of steps that will be drawn again; returns how many are left."""
    text = path.read_text() if path.exists() else ""
    lines = text[:text.rfind("\n") + 1].splitlines()  # a kill may have cut the last one, behind a brace too
    left = [line for line in lines if json.loads(line)["step"] < step]
    write_atomic(path, "".join(line + "\n" for line in left))
    return len(left)
