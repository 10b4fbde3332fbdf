"""Writes report.html: one self-contained page with the table, the figures, the verdict and the protocol."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.evaluate.contamination import Overlap
from components.evaluate.gate import Verdict
from components.evaluate.statistics import Estimate, Paired, wilson
from components.evaluate.summary import Comparison, Score
from components.evaluate.workload import DOCUMENTS, TASKS
from stagecraft.contract.page import inline_svg, render_page

EXAMPLES = 7


def render(*, scores: dict[str, Score], comparisons: dict[str, Comparison], verdict: Verdict, results: dict[str, dict[str, Any]],
           rows: list[dict[str, Any]], manifests: dict[str, dict[str, Any]], curation: dict[str, Any], figures: dict[str, str],
           confidence: float, overlaps: dict[str, Overlap], unsearched: list[str], not_run: dict[str, str]) -> str:
    """The page as HTML that is well-formed XML too.

    Args:
        rows: the task rows that were asked, in the order of the results' answers.
        manifests: of the models: which stage made each, and how that went by its metrics.
        curation: the corpus's report.json; its words on the nature of the demonstrations are repeated here.
        figures: title -> SVG file's text.
        confidence: of the intervals shown.
        overlaps: evaluation set -> what of it was found in training text; empty if nobody looked.
        unsearched: files that were trained on besides the corpus.
        not_run: benchmark -> why this machine could not run it.
    """
    return render_page(
        Path(__file__).with_name("report.html.j2"), {"percent": _percent, "signed": _signed, "interval": _interval, "number": _number},
        scores=scores, comparisons=comparisons, verdict=verdict, confidence=confidence, overlaps=overlaps, unsearched=unsearched,
        not_run=not_run, asked=overlaps.get(TASKS), read=overlaps.get(DOCUMENTS),
        intervals={name: wilson(round(s.exact_match.value * s.exact_match.n), s.exact_match.n, confidence) for name, s in scores.items()},
        examples=_examples(results, rows), tasks=curation.get("tasks", {}), protocol=asdict(next(iter(scores.values())).protocol),
        digest=next(iter(scores.values())).protocol.digest, documents=next(iter(results.values()))["texts"],
        stages={name: (manifests[name]["stage"], _scalars(manifests[name].get("metrics", {}))) for name in scores},
        figures={title: inline_svg(text, f"figure{index}-", title) for index, (title, text) in enumerate(figures.items())},
    )


def _examples(results: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first prompt of each family with every model's answer."""
    firsts: dict[str, int] = {}
    for index, row in enumerate(rows):
        firsts.setdefault(row["family"], index)
    return [{"family": family, "prompt": rows[index]["messages"][-1]["content"],
             "answers": {name: result["answers"][index] for name, result in results.items()}}
            for family, index in sorted(firsts.items())[:EXAMPLES]]


def _scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """The plain numbers, less timings: the same models give the same page, however busy the machine was."""
    return {name: value for name, value in metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and "second" not in name}


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} ± {100 * estimate.stderr:.1f}"


def _signed(found: Paired, scale: float, digits: int) -> str:
    return f"{scale * found.difference:+.{digits}f} ± {scale * found.stderr:.{digits}f}".replace("-", "−")


def _interval(bounds: tuple[float, float], scale: float, digits: int) -> str:
    return " to ".join(f"{scale * bound:+.{digits}f}" for bound in bounds).replace("-", "−")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
