"""Evaluate: five models side by side on held-out text and tasks, and the gate that decides which one may be served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.evaluate import contamination, gate, plots, report, summary
from components.evaluate.artifact import write_answers, write_figures, write_verdict
from components.evaluate.params import MODELS, Params
from components.evaluate.workers import run_all
from components.evaluate.workload import choose
from stagecraft.contract import manifest
from stagecraft.contract.files import write_atomic
from stagecraft.contract.runlog import RunLog

__all__ = ["Params", "main"]


def main(params: Params, inputs: dict[str, Path], outputs: dict[str, Path], log: RunLog) -> dict[str, Any]:
    """Measure every model, compare, decide, and write it all down.

    Args:
        inputs: `corpus`, and the models `base`, `sft`, `aligned`, `fp8`, `nvfp4`: artifacts with a manifest.
        outputs: `evaluation`, a directory: evaluation.json (figures, comparisons, protocol), promotion.json (the verdict),
            answers/<model>.jsonl (every answer), report.html.

    Returns:
        the figures by model, `comparisons`, `promoted` (a model's name, or "none") and `promoted_exact_match` (0 for "none").

    Raises:
        UserError: an unreadable checkpoint, too little held-out data, prompts too long for `max_model_len`.
        RuntimeError: an evaluating process died.
    """
    out = outputs["evaluation"]
    workload = choose(inputs["corpus"], params)
    if len(workload.rows) < params.tasks.prompts:
        log.note(f"the corpus holds {len(workload.rows)} held-out tasks, {params.tasks.prompts} were asked for")
    manifests = {name: manifest.read(inputs[name]) for name in MODELS}
    results = run_all({name: (inputs[name], manifests[name]["digest"]) for name in MODELS}, workload, params, log)

    not_run = results["base"]["not_run"]
    for name, reason in not_run.items():
        log.note(f"{name} was not run: {reason}")
    overlaps = contamination.check(inputs["corpus"], workload.texts(results["base"]["benchmarks"])) if params.contamination else {}
    if unsearched := manifests["sft"]["params"].get("data", {}).get("files", []) if params.contamination else []:
        log.note(f"trained on besides the corpus, and not searched for what is asked: {', '.join(unsearched)}")
    for name, overlap in overlaps.items():
        if overlap.found:
            log.note(f"{name}: {overlap.found} of {overlap.texts} share text with the training corpus")

    scores = {name: summary.score(result) for name, result in results.items()}
    comparisons = summary.compare(results, params.gate.confidence)
    verdict = gate.decide(scores, comparisons, params.gate)
    log.note(f"gate: {verdict.reason}")

    figures = summary.metrics(scores, comparisons)
    write_figures(out, figures, scores, overlaps, unsearched, not_run)
    write_verdict(out, verdict, scores, results, params.gate)
    write_answers(out, results)
    with plots.style():
        drawn = {
            "Exact match by task family, bars span one standard error to either side": log.figure("exact_match", plots.exact_match(scores)),
            "Bits per byte on held-out text, bars span one standard error": log.figure("bits_per_byte", plots.bits_per_byte(scores)),
        }
    write_atomic(out / "report.html", report.render(
        scores=scores, comparisons=comparisons, verdict=verdict, results=results, rows=workload.rows, manifests=manifests,
        curation=json.loads((inputs["corpus"] / "report.json").read_text()), figures={t: p.read_text() for t, p in drawn.items()},
        confidence=params.gate.confidence, overlaps=overlaps, unsearched=unsearched, not_run=not_run))
    protocol = scores["base"].protocol
    log.record(engine=f"{protocol.engine} {protocol.engine_version}", compute_dtype=protocol.compute_dtype, hardware=protocol.hardware,
               protocol=protocol.digest, weights={name: score.model.precision for name, score in scores.items()})
    reached = scores[verdict.promoted].exact_match.value if verdict.promoted else 0.0
    return {**figures, "promoted": verdict.promoted or "none", "promoted_exact_match": reached}
