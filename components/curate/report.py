"""report.json and report.html: how the corpus came to be, what is in it, and what the task demonstrations are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.curate.blend import Group, Portion, group_of
from components.curate.catalogue import Catalogue
from components.curate.corpus import TokenFile
from components.curate.funnel import Funnel
from components.curate.params import Params
from components.curate.plots import report_figures
from components.curate.reading.listing import File
from components.curate.tiers.classifier import cross_validate
from components.curate.tiers.seeds import Seed
from stagecraft.contract.files import digest_of
from stagecraft.contract.page import render_page
from stagecraft.data.tasks import FLAWS
from stagecraft.environments import verify

DEMONSTRATIONS = (
    "The SFT demonstrations are synthetic and of mixed quality on purpose: a stated share of each family's is flawed in a "
    "systematic way, so that the SFT model knows a right and a wrong style and reinforcement learning has something to teach. "
    "Held-out prompts occur in no training set."
)
_MATCHES = 50  # listed in the page; report.json has all
_BINS = 24


def build_report(params: Params, rules: Sequence[Mapping[str, Any]], files: Sequence[File], sample: Sequence[File], funnel: Funnel,
                 catalogue: Catalogue, token_files: Mapping[str, TokenFile], phases: Mapping[str, Mapping[Group, Portion]],
                 tasks: dict[str, list[dict[str, Any]]], seeds: Sequence[Seed], metrics: dict[str, float]) -> dict[str, Any]:
    """The curation report as plain data. Token counts of steps are bytes divided by `bytes_per_token`; those of files are exact."""
    kept = catalogue.table.filter(catalogue.kept)
    return {
        "input": {
            "where": params.input, "files": len(files), "files_left_out": len(files) - len(sample),
            "documents_by_source": funnel.steps[0].counts, "broken": funnel.broken,
            "digest": digest_of(sorted(catalogue.table["id"].to_pylist())),
        },
        "funnel": [_step(step, metrics["bytes_per_token"]) for step in funnel.steps],
        "rules": rules, "clusters": funnel.clusters, "contamination": funnel.matches,
        "heldout_overlaps": funnel.overlaps,
        "kept": {name: _counts(kept[name].to_pylist()) for name in ("source", "language", "category", "licence")},
        "tiers": _counts(str(tier) for tier in kept["tier"].to_pylist()),
        "lengths": _histogram(kept["bytes"].to_numpy()),
        "classifier": cross_validate(seeds),
        "token_files": {name: {"documents": file.counted[0], "tokens": file.counted[1], "bytes": file.bytes,
                               "bytes_per_token": round(file.bytes / max(1, file.counted[1] - file.counted[0]), 4)}
                        for name, file in token_files.items()},
        "categories": _categories(token_files),
        "blend": {phase: [{"category": category, "tier": tier, "weight": round(portion.weight, 6), "epochs": round(portion.epochs, 4)}
                          for (category, tier), portion in portions.items()] for phase, portions in phases.items()},
        "sizes": metrics,
        "tasks": {"demonstrations": DEMONSTRATIONS,
                  "families": {family: _describe(family, params, tasks) for family in params.tasks.flawed}},
    }


def render(report: dict[str, Any]) -> str:
    """The report as one self-contained page."""
    return render_page(Path(__file__).with_name("report.html.j2"), {"megabytes": _megabytes}, report=report,
                       figures=report_figures(report), matches=report["contamination"][:_MATCHES],
                       overlaps=report["heldout_overlaps"][:_MATCHES])


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f}"


def _categories(token_files: Mapping[str, TokenFile]) -> dict[str, dict[str, float]]:
    """Documents, tokens and bytes of the training files by category, and how many bytes a token of it stands for."""
    found: dict[str, Counter[str]] = {}
    for name, file in token_files.items():
        if group := group_of(name):
            found.setdefault(group[0], Counter()).update(documents=file.counted[0], tokens=file.counted[1], bytes=file.bytes)
    return {category: {**counts, "bytes_per_token": round(counts["bytes"] / max(1, counts["tokens"] - counts["documents"]), 4)}
            for category, counts in found.items()}


def _step(step: Any, bytes_per_token: float) -> dict[str, Any]:
    out = step.documents - step.removed_documents, step.bytes - step.removed_bytes
    return {
        "step": step.step, "documents_in": step.documents, "bytes_in": step.bytes, "tokens_in": round(step.bytes / bytes_per_token),
        "documents_out": out[0], "bytes_out": out[1], "tokens_out": round(out[1] / bytes_per_token),
        "counts": dict(sorted(step.counts.items(), key=lambda item: -item[1])),
        "removed": [{"reason": reason, "documents": documents, "bytes": size, "samples": step.samples[reason]}
                    for reason, (documents, size) in sorted(step.removed.items(), key=lambda item: -item[1][0])],
    }


def _counts(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _histogram(sizes: np.ndarray) -> dict[str, list[float]]:
    """Documents by size in bytes, in bins of equal ratio."""
    edges = np.geomspace(max(1, sizes.min()), sizes.max() + 1, _BINS + 1)
    return {"edges": [round(float(edge), 1) for edge in edges], "documents": np.histogram(sizes, edges)[0].tolist()}


def _describe(family: str, params: Params, tasks: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """One family: rows per set, how its flawed demonstrations are flawed and how many, how many demonstrations verify, one example."""
    rows = [row for row in tasks["sft"] if row["family"] == family]
    modes = Counter(row["mode"] for row in rows)
    verified = sum(verify(row, row["demonstration"]).score for row in rows)
    mode, flaw = FLAWS[family]
    return {
        "rows": {split: sum(row["family"] == family for row in members) for split, members in tasks.items()},
        "flaw": flaw, "flawed_share_wanted": params.tasks.flawed[family], "flawed_share": round(modes[mode] / len(rows), 4),
        "demonstrations_that_verify": round(verified / len(rows), 4),
        "example": {"prompt": rows[0]["messages"][0]["content"], "demonstration": rows[0]["demonstration"], "mode": rows[0]["mode"]},
    }
