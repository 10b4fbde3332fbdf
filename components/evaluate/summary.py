"""From answers to figures: each model's scores with their standard errors, and the comparisons between models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from components.evaluate import statistics
from components.evaluate.protocol import Model, Protocol, require_same
from components.evaluate.statistics import Estimate, Paired

EXACT_MATCH, BITS = "exact match", "bits per byte"
COMPARISONS = (("sft", "base"), ("aligned", "sft"), ("fp8", "aligned"), ("nvfp4", "aligned"))


@dataclass(frozen=True)
class Benchmark:
    """One model's figure of a task that lm-eval ran.

    Attributes:
        version, metric: of the task's file.
        mean: avg@k over prompts, standard error clustered by prompt.
        strata: the same by the task's own division (length of context, subject); empty if it has none.
        pass_at_k: k -> estimate, for a task that is asked several times and judged right or wrong; else empty.
    """

    version: str
    metric: str
    mean: Estimate
    strata: dict[str, Estimate]
    pass_at_k: dict[int, Estimate]


@dataclass(frozen=True)
class Score:
    """One model's figures.

    Attributes:
        exact_match: share of held-out prompts answered right, over all families; the standard error treats the prompts as one
            sample, which is a little more than what a sample stratified by family has.
        families: the same by family.
        bits_per_byte: over the held-out text, standard error clustered by document.
        sources: the same by source of the documents; those with one document are left out.
        benchmarks: task -> figure.
        pass_at_k: k -> estimate over prompts, empty where it was not asked for.
        unfinished: share of greedy answers that were cut off at max_new_tokens.
        answer_tokens: mean length of the greedy answers.
    """

    model: Model
    protocol: Protocol
    exact_match: Estimate
    families: dict[str, Estimate]
    bits_per_byte: Estimate
    sources: dict[str, Estimate]
    benchmarks: dict[str, Benchmark]
    pass_at_k: dict[int, Estimate]
    unfinished: Estimate
    answer_tokens: Estimate


@dataclass(frozen=True)
class Comparison:
    """The first model against the second one, on the same prompts and documents.

    Attributes:
        exact_match: paired by prompt.
        benchmarks: task -> the same.
        bits_per_byte: paired by document; positive means the first predicts text less well.
        p_values_adjusted: of all of these by name: Holm, over all questions of the report.
        detectable: of the same, the smallest true difference that 80% of such evaluations would find.
    """

    first: str
    second: str
    exact_match: Paired
    benchmarks: dict[str, Paired]
    bits_per_byte: Paired
    p_values_adjusted: dict[str, float]
    detectable: dict[str, float]

    @property
    def name(self) -> str:
        return f"{self.first}_minus_{self.second}"


def score(result: dict[str, Any]) -> Score:
    """The figures of one worker's result."""
    answers, texts = result["answers"], result["texts"]
    return Score(
        model=Model(**result["model"]),
        protocol=Protocol.from_dict(result["protocol"]),
        exact_match=statistics.mean([answer["correct"] for answer in answers]),
        families={family: statistics.mean([answer["correct"] for answer in several])
                  for family, several in _grouped(answers, lambda answer: answer["family"]).items()},
        bits_per_byte=_bits_per_byte(texts),
        sources={source: _bits_per_byte(several) for source, several in _grouped(texts, lambda text: text["source"]).items()
                 if len(several) > 1},
        benchmarks={name: _benchmark(found) for name, found in result["benchmarks"].items()},
        pass_at_k=_pass_at_k(result["sampled"]),
        unfinished=statistics.mean([not answer["finished"] for answer in answers]),
        answer_tokens=statistics.mean([answer["tokens"] for answer in answers]),
    )


def compare(results: dict[str, dict[str, Any]], confidence: float) -> dict[str, Comparison]:
    """All comparisons between models that are there, by name (`aligned_minus_sft`).

    Raises:
        UserError: two models were measured by different protocols.
    """
    found: dict[tuple[str, str], dict[str, Paired]] = {}
    for first, second in COMPARISONS:
        if first in results and second in results:
            require_same(results[first]["protocol"], results[second]["protocol"], (first, second))
            ours, theirs = _per_prompt(results[first]), _per_prompt(results[second])
            found[first, second] = {name: statistics.paired(ours[name], theirs[name], confidence) for name in ours}
            found[first, second][BITS] = _paired_texts(results[first]["texts"], results[second]["texts"], confidence)
    adjusted = statistics.holm({(*pair, name): each.p_value for pair, several in found.items() for name, each in several.items()})
    comparisons = []
    for (first, second), several in found.items():
        comparisons.append(Comparison(
            first=first, second=second, exact_match=several[EXACT_MATCH],
            benchmarks={name: each for name, each in several.items() if name not in (EXACT_MATCH, BITS)}, bits_per_byte=several[BITS],
            p_values_adjusted={name: adjusted[first, second, name] for name in several},
            detectable={name: statistics.minimum_detectable_difference(each.stderr, confidence) for name, each in several.items()}))
    return {comparison.name: comparison for comparison in comparisons}


def record(result: dict[str, Any]) -> dict[str, list[float]]:
    """What a later challenger is compared with: task family or benchmark -> score of each prompt."""
    families = {family: [float(answer["correct"]) for answer in several]
                for family, several in _grouped(result["answers"], lambda answer: answer["family"]).items()}
    return {**families, **_benchmark_scores(result)}


def metrics(scores: dict[str, Score], comparisons: dict[str, Comparison]) -> dict[str, Any]:
    """The figures as the metrics file holds them."""
    figures: dict[str, Any] = {}
    for name, each in scores.items():
        figures[name] = {
            "bits_per_byte": each.bits_per_byte.value, "bits_per_byte_stderr": each.bits_per_byte.stderr,
            "exact_match": each.exact_match.value, "exact_match_stderr": each.exact_match.stderr,
            "unfinished": each.unfinished.value, "unfinished_stderr": each.unfinished.stderr,
            "answer_tokens": each.answer_tokens.value, "answer_tokens_stderr": each.answer_tokens.stderr,
            "families": {family: {"exact_match": estimate.value, "stderr": estimate.stderr, "n": estimate.n}
                         for family, estimate in each.families.items()},
            "sources": {source: {"bits_per_byte": estimate.value, "stderr": estimate.stderr, "n": estimate.n}
                        for source, estimate in each.sources.items()},
            "benchmarks": {task: {**_scored(found.mean), **_passed(found.pass_at_k),
                                  "strata": {stratum: _scored(part) for stratum, part in found.strata.items()}}
                           for task, found in each.benchmarks.items()},
            **_passed(each.pass_at_k),
        }
    figures["comparisons"] = {
        name: {"exact_match": each.exact_match.difference, "stderr": each.exact_match.stderr, "p_value": each.exact_match.p_value,
               "p_value_adjusted": each.p_values_adjusted[EXACT_MATCH], "n": each.exact_match.n,
               "minimum_detectable": each.detectable[EXACT_MATCH],
               "bits_per_byte": each.bits_per_byte.difference, "bits_per_byte_stderr": each.bits_per_byte.stderr,
               "bits_per_byte_p_value_adjusted": each.p_values_adjusted[BITS], "bits_per_byte_minimum_detectable": each.detectable[BITS],
               "benchmarks": {task: {"difference": found.difference, "stderr": found.stderr, "p_value": found.p_value, "n": found.n,
                                     "p_value_adjusted": each.p_values_adjusted[task], "minimum_detectable": each.detectable[task]}
                              for task, found in each.benchmarks.items()}}
        for name, each in comparisons.items()}
    return figures


def _scored(estimate: Estimate) -> dict[str, float]:
    return {"score": estimate.value, "stderr": estimate.stderr, "n": estimate.n}


def _passed(pass_at_k: dict[int, Estimate]) -> dict[str, float]:
    return {key: value for k, estimate in pass_at_k.items()
            for key, value in ((f"pass_at_{k}", estimate.value), (f"pass_at_{k}_stderr", estimate.stderr))}


def _grouped(items: list[dict[str, Any]], key: Callable[[dict[str, Any]], str]) -> dict[str, list[dict[str, Any]]]:
    """The items by key, keys in order."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return dict(sorted(groups.items()))


def _per_prompt(result: dict[str, Any]) -> dict[str, list[float]]:
    return {EXACT_MATCH: [float(answer["correct"]) for answer in result["answers"]], **_benchmark_scores(result)}


def _benchmark_scores(result: dict[str, Any]) -> dict[str, list[float]]:
    return {name: [sum(scores) / len(scores) for scores in found["scores"]] for name, found in result["benchmarks"].items()}


def _benchmark(found: dict[str, Any]) -> Benchmark:
    scores, strata = found["scores"], dict.fromkeys(found["strata"])
    parts = {name: [each for each, stratum in zip(scores, found["strata"]) if stratum == name] for name in strata if name is not None}
    repeats, binary = len(scores[0]), all(score in (0, 1) for each in scores for score in each)
    return Benchmark(
        version=found["version"], metric=found["metric"], mean=statistics.clustered(scores),
        strata={name: statistics.clustered(part) for name, part in parts.items() if len(part) > 1},
        pass_at_k={k: statistics.mean([statistics.pass_at_k(repeats, round(sum(each)), k) for each in scores])
                   for k in dict.fromkeys((1, repeats))} if repeats > 1 and binary else {})


def _bits_per_byte(texts: list[dict[str, Any]]) -> Estimate:
    return statistics.ratio([text["bits"] for text in texts], [text["bytes"] for text in texts])


def _paired_texts(first: list[dict[str, Any]], second: list[dict[str, Any]], confidence: float) -> Paired:
    ours, theirs = ([text["bits"] for text in texts] for texts in (first, second))
    return statistics.paired_ratio(ours, theirs, [text["bytes"] for text in first], confidence)


def _pass_at_k(sampled: list[dict[str, Any]]) -> dict[int, Estimate]:
    """pass@1 and pass@n over prompts; with one number per prompt the standard error is clustered by prompt."""
    if not sampled:
        return {}
    samples = min(row["samples"] for row in sampled)
    return {k: statistics.mean([statistics.pass_at_k(row["samples"], row["correct"], k) for row in sampled]) for k in (1, samples)}
