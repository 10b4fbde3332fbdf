"""The gate: which model, if any, may be served. Rules are code, their numbers are parameters, every finding is written down."""

from __future__ import annotations

from dataclasses import dataclass

from components.evaluate.params import Gate
from components.evaluate.summary import Comparison, Score


@dataclass(frozen=True)
class Check:
    """One rule applied: what was asked, what was found, and whether it held."""

    rule: str
    found: str
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """What is promoted and why.

    Attributes:
        promoted: the model's name, None if nothing may be promoted.
        reason: one sentence.
        checks: subject -> its rules; the subject is `pipeline` or a candidate.
    """

    promoted: str | None
    reason: str
    checks: dict[str, list[Check]]


def decide(scores: dict[str, Score], comparisons: dict[str, Comparison], gate: Gate) -> Verdict:
    """Promote the first candidate that passes, if the pipeline as a whole passes.

    Pipeline: the base model is sane (it predicts text, and cannot do the tasks yet), and alignment gained something for sure.
    Candidates: good enough; a quantised one surely loses no more than `quantized_max_loss` against the aligned model
    (non-inferiority: it is the lower confidence bound of the paired difference that must stay above the limit, so an
    evaluation too small to tell promotes nothing).
    """
    checks = {"pipeline": _pipeline(scores, comparisons, gate)}
    for name in gate.candidates:
        checks[name] = _candidate(name, scores, comparisons, gate)
    failed = [check for check in checks["pipeline"] if not check.passed]
    if failed:
        return Verdict(None, f"nothing is promoted: {_say(failed[0])}", checks)
    for name in gate.candidates:
        if all(check.passed for check in checks[name]):
            passed_over = [f"{other} failed ({_say(next(check for check in checks[other] if not check.passed))})"
                           for other in gate.candidates[:gate.candidates.index(name)]]
            return Verdict(name, "; ".join([f"{name} is the first candidate that passes every rule", *passed_over]), checks)
    shortcoming = next(check for check in checks[gate.candidates[0]] if not check.passed)
    return Verdict(None, f"nothing is promoted: no candidate passes; {_say(shortcoming)}", checks)


def _pipeline(scores: dict[str, Score], comparisons: dict[str, Comparison], gate: Gate) -> list[Check]:
    base, gain = scores["base"], comparisons["aligned_minus_sft"].exact_match
    bound = gain.lower_bound(gate.confidence)
    return [
        Check(f"base predicts text: at most {gate.base_max_bits_per_byte:g} bits per byte",
              f"{base.bits_per_byte.value:.3f}", base.bits_per_byte.value <= gate.base_max_bits_per_byte),
        Check(f"base cannot do the tasks yet: exact match at most {gate.base_max_exact_match:.1%}",
              f"{base.exact_match.value:.1%}", base.exact_match.value <= gate.base_max_exact_match),
        Check(f"aligned beats sft by at least {_points(gate.aligned_min_gain)}",
              f"{_points(gain.difference)} ± {_points(gain.stderr)}", gain.difference >= gate.aligned_min_gain),
        Check(f"aligned beats sft for sure (lower {gate.confidence:.0%} bound above 0)", _points(bound), bound > 0),
    ]


def _candidate(name: str, scores: dict[str, Score], comparisons: dict[str, Comparison], gate: Gate) -> list[Check]:
    found = scores[name].exact_match
    checks = [Check(f"{name} answers at least {gate.min_exact_match:.0%} of the tasks", f"{found.value:.1%} ± {_points(found.stderr)}",
                    found.value >= gate.min_exact_match)]
    if name != "aligned":
        difference = comparisons[f"{name}_minus_aligned"].exact_match
        bound = difference.lower_bound(gate.confidence)
        checks.append(Check(f"{name} loses at most {_points(gate.quantized_max_loss)} against aligned (lower {gate.confidence:.0%} bound)",
                            f"{_points(difference.difference)} ± {_points(difference.stderr)}, bound {_points(bound)}",
                            bound >= -gate.quantized_max_loss))
    return checks


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _say(check: Check) -> str:
    return f"{check.rule} - found {check.found}"
