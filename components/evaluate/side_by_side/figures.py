"""From answers and times to figures with intervals: accuracy by prompt, speed by round, and every pair compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import chain, combinations
from typing import Any

from components.evaluate import statistics
from components.evaluate.protocol import Model

ALL = "all prompts"


@dataclass
class Measured:
    """What the rounds of one subject gave.

    Attributes:
        answers: of each round what `harness.run` returned.
        tokens, seconds: of each round, for answers of one length.
        asked: prompts of a round.
    """

    model: Model
    protocol: dict[str, Any]
    answers: list[dict[str, dict[str, Any]]]
    tokens: list[int]
    seconds: list[float]
    asked: int = 0

    @property
    def speeds(self) -> list[float]:
        """Tokens per second of each round."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds)]

    def scores(self) -> dict[str, list[list[float]]]:
        """Task -> for each prompt its scores over all rounds; `ALL` holds the prompts of all tasks."""
        by_task = {task: [list(chain.from_iterable(rounds)) for rounds in zip(*(answers[task]["scores"] for answers in self.answers))]
                   for task in self.answers[0]}
        return {**by_task, ALL: [scores for several in by_task.values() for scores in several]}


def summarise(measured: dict[str, Measured], confidence: float) -> dict[str, Any]:
    """Figures of every subject and of every pair.

    Accuracy: mean over prompts and rounds, clustered by prompt; pairs by prompt, with Holm's correction over all pairs and tasks.
    Speed: geometric mean over rounds, with Student's interval of the logarithm, which stays above zero; pairs as the ratios of the
    rounds in the same way, for what slows the machine in a round slows both.
    """
    subjects = {name: _subject(each, confidence) for name, each in measured.items()}
    pairs, raw = [], {}
    for first, second in combinations(measured, 2):
        ours, theirs = _means(measured[first]), _means(measured[second])
        accuracy = {task: statistics.paired(ours[task], theirs[task], confidence) for task in ours}
        ratios = [a / b for a, b in zip(measured[first].speeds, measured[second].speeds)]
        pairs.append({"first": first, "second": second, "speed_ratio": _geometric(ratios, confidence),
                      "accuracy": {task: {**asdict(found), "detectable": statistics.minimum_detectable_difference(found.stderr, confidence)}
                                   for task, found in accuracy.items()}})
        raw.update({(first, second, task): found.p_value for task, found in accuracy.items()})
    adjusted = statistics.holm(raw)
    for pair in pairs:
        for task, found in pair["accuracy"].items():
            found["p_value_adjusted"] = adjusted[pair["first"], pair["second"], task]
    return {"subjects": subjects, "pairs": pairs, "confidence": confidence}


def _subject(measured: Measured, confidence: float) -> dict[str, Any]:
    return {
        "model": asdict(measured.model), "protocol": measured.protocol,
        "accuracy": {task: asdict(statistics.clustered(scores)) for task, scores in measured.scores().items()},
        "tokens_per_second": {**_geometric(measured.speeds, confidence), "rounds": measured.speeds},
        "scores": measured.scores(),
    }


def _geometric(values: list[float], confidence: float) -> dict[str, Any]:
    estimate, interval = statistics.geometric(values, confidence)
    return {"value": estimate.value, "stderr": estimate.stderr, "interval": list(interval)}


def _means(measured: Measured) -> dict[str, list[float]]:
    return {task: [sum(each) / len(each) for each in scores] for task, scores in measured.scores().items()}
