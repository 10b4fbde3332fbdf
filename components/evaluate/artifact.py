"""What the stage leaves behind: figures, verdict and every answer as JSON, for programs; report.py writes the page for people."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.evaluate.contamination import Overlap
from components.evaluate.gate import Verdict
from components.evaluate.params import Gate
from components.evaluate.summary import Score, record
from stagecraft.contract.files import write_atomic, write_json


def write_figures(out: Path, figures: dict[str, Any], scores: dict[str, Score], overlaps: dict[str, Overlap],
                  unsearched: list[str], not_run: dict[str, str]) -> None:
    """evaluation.json: the figures with the protocol they were measured by, what of the tasks was found in training text, which files
    were trained on and not searched, and which benchmarks could not run, with the reason."""
    protocol = scores["base"].protocol
    write_json(out / "evaluation.json", {
        "figures": figures, "models": {name: asdict(score.model) for name, score in scores.items()},
        "protocol": asdict(protocol), "protocol_digest": protocol.digest,
        "contamination": {name: asdict(overlap) for name, overlap in overlaps.items()},
        "contamination_not_searched": unsearched, "not_run": not_run,
    })


def write_verdict(out: Path, verdict: Verdict, scores: dict[str, Score], results: dict[str, dict[str, Any]], gate: Gate) -> None:
    """promotion.json: {"promoted": name or null, "reason", "digest" of the promoted artifact or null, "protocol_digest", "checks",
    "record", ...}. `record` is what the registry keeps of the promoted model, and compares with the champion's (champion.py)."""
    score = scores[verdict.promoted] if verdict.promoted else None
    write_json(out / "promotion.json", {
        "promoted": verdict.promoted, "reason": verdict.reason, "protocol_digest": scores["base"].protocol.digest,
        "digest": score.model.digest if score else None, "precision": score.model.precision if score else None,
        "exact_match": asdict(score.exact_match) if score else None,
        "record": {"protocol": asdict(score.protocol), "scores": record(results[verdict.promoted]), "rules": {
            "family_max_loss": gate.family_max_loss, "family_confidence": gate.family_confidence,
            "other_protocol": gate.other_protocol}} if score else None,
        "checks": {subject: [asdict(check) for check in checks] for subject, checks in verdict.checks.items()},
    })


def write_answers(out: Path, results: dict[str, dict[str, Any]]) -> None:
    """answers/<model>.jsonl: every greedy answer with what the verifier said, then the first answer to each benchmark prompt
    with the scores of all its answers."""
    for name, result in results.items():
        said = [*result["answers"], *(
            {"id": f"{task}-{index:06d}", "family": task, "scores": scores, "completion": answer}
            for task, found in result["benchmarks"].items()
            for index, (scores, answer) in enumerate(zip(found["scores"], found["answers"])))]
        write_atomic(out / "answers" / f"{name}.jsonl", "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in said))
