"""From answers to figures: each model's scores with their standard errors, and the comparisons between models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from components.evaluate import statistics
from components.evaluate.protocol import Model, Protocol, require_same
from components.evaluate.statistics import Estimate, Paired

COMPARISONS = (("sft", "base"), ("aligned", "sft"), ("fp8", "aligned"), ("nvfp4", "aligned"))


@dataclass(frozen=True)
class Score:
    """One model's figures.

    Attributes:
        exact_match: share of held-out prompts answered right, over all families; the standard error treats the prompts as one
            sample, which is a little more than what a sample stratified by family has.
        families: the same by family.
        bits_per_byte: over the held-out text, standard error clustered by document.
        pass_at_k: k -> estimate over prompts, empty where it was not asked for.
        unfinished: share of greedy answers that were cut off at max_new_tokens.
        answer_tokens: mean length of the greedy answers.
    """

    model: Model
    protocol: Protocol
    exact_match: Estimate
    families: dict[str, Estimate]
    bits_per_byte: Estimate
    pass_at_k: dict[int, Estimate]
    unfinished: float
    answer_tokens: float


@dataclass(frozen=True)
class Comparison:
    """The first model against the second one, on the same prompts and documents.

    Attributes:
        exact_match: paired by prompt.
        p_value_adjusted: Holm, over all comparisons of the report.
        detectable: the smallest true difference that 80% of such evaluations would find.
        bits_per_byte: difference paired by document; positive means the first predicts text less well.
    """

    first: str
    second: str
    exact_match: Paired
    p_value_adjusted: float
    detectable: float
    bits_per_byte: Estimate

    @property
    def name(self) -> str:
        return f"{self.first}_minus_{self.second}"


def score(result: dict[str, Any]) -> Score:
    """The figures of one worker's result."""
    answers, texts = result["answers"], result["texts"]
    by_family: dict[str, list[bool]] = {}
    for answer in answers:
        by_family.setdefault(answer["family"], []).append(answer["correct"])
    return Score(
        model=Model(**result["model"]),
        protocol=Protocol.from_dict(result["protocol"]),
        exact_match=statistics.mean([answer["correct"] for answer in answers]),
        families={family: statistics.mean(by_family[family]) for family in sorted(by_family)},
        bits_per_byte=statistics.ratio([text["bits"] for text in texts], [text["bytes"] for text in texts]),
        pass_at_k=_pass_at_k(result["sampled"]),
        unfinished=sum(not answer["finished"] for answer in answers) / len(answers),
        answer_tokens=sum(answer["tokens"] for answer in answers) / len(answers),
    )


def compare(results: dict[str, dict[str, Any]], confidence: float) -> dict[str, Comparison]:
    """All comparisons between models that are there, by name (`aligned_minus_sft`).

    Raises:
        UserError: two models were measured by different protocols.
    """
    drafts = {}
    for first, second in COMPARISONS:
        if first in results and second in results:
            a, b = results[first], results[second]
            require_same(Protocol.from_dict(a["protocol"]), Protocol.from_dict(b["protocol"]), (first, second))
            drafts[first, second] = _paired_answers(a, b), _paired_texts(a, b)
    adjusted = statistics.holm({f"{first}/{second}": answers.p_value for (first, second), (answers, _) in drafts.items()})
    comparisons = [
        Comparison(first=first, second=second, exact_match=answers, p_value_adjusted=adjusted[f"{first}/{second}"],
                   detectable=statistics.minimum_detectable_difference(answers.stderr, confidence), bits_per_byte=texts)
        for (first, second), (answers, texts) in drafts.items()
    ]
    return {comparison.name: comparison for comparison in comparisons}


def metrics(scores: dict[str, Score], comparisons: dict[str, Comparison]) -> dict[str, Any]:
    """The figures as the metrics file holds them."""
    figures: dict[str, Any] = {}
    for name, each in scores.items():
        figures[name] = {
            "bits_per_byte": each.bits_per_byte.value, "bits_per_byte_stderr": each.bits_per_byte.stderr,
            "exact_match": each.exact_match.value, "exact_match_stderr": each.exact_match.stderr, "unfinished": each.unfinished,
            "families": {family: {"exact_match": estimate.value, "stderr": estimate.stderr, "n": estimate.n}
                         for family, estimate in each.families.items()},
        }
        for k, estimate in each.pass_at_k.items():
            figures[name] |= {f"pass_at_{k}": estimate.value, f"pass_at_{k}_stderr": estimate.stderr}
    figures["comparisons"] = {
        name: {"exact_match": each.exact_match.difference, "stderr": each.exact_match.stderr, "p_value": each.exact_match.p_value,
               "p_value_adjusted": each.p_value_adjusted, "n": each.exact_match.n, "minimum_detectable": each.detectable,
               "bits_per_byte": each.bits_per_byte.value, "bits_per_byte_stderr": each.bits_per_byte.stderr}
        for name, each in comparisons.items()}
    return figures


def _paired_answers(a: dict[str, Any], b: dict[str, Any]) -> Paired:
    return statistics.paired([answer["correct"] for answer in a["answers"]], [answer["correct"] for answer in b["answers"]])


def _paired_texts(a: dict[str, Any], b: dict[str, Any]) -> Estimate:
    pairs = list(zip(a["texts"], b["texts"]))
    return statistics.ratio([first["bits"] - second["bits"] for first, second in pairs], [first["bytes"] for first, _ in pairs])


def _pass_at_k(sampled: list[dict[str, Any]]) -> dict[int, Estimate]:
    """pass@1 and pass@n over prompts; with one number per prompt the standard error is clustered by prompt."""
    if not sampled:
        return {}
    samples = min(row["samples"] for row in sampled)
    return {k: statistics.mean([statistics.pass_at_k(row["samples"], row["correct"], k) for row in sampled]) for k in (1, samples)}
