"""report.json: how the corpus came to be, and what the task demonstrations are."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

from tokenizers import Tokenizer

from components.curate.funnel import Funnel
from components.curate.params import Params
from components.curate.sources import Collection
from stagecraft.data.tasks import FLAWS
from stagecraft.environments import verify

DEMONSTRATIONS = (
    "The SFT demonstrations are synthetic and of mixed quality on purpose: a stated share of each family's is flawed in a "
    "systematic way, so that the SFT model knows a right and a wrong style and reinforcement learning has something to teach. "
    "Held-out prompts occur in no training set."
)


def build_report(params: Params, collection: Collection, funnel: Funnel, tokenizer: Tokenizer,
                 tasks: dict[str, list[dict[str, Any]]], sizes: dict[str, float]) -> dict[str, Any]:
    """The curation report as plain data."""
    texts = hashlib.sha256()
    for document in collection.documents:
        texts.update(f"{document.id}{hashlib.sha256(document.text.encode()).hexdigest()}".encode())
    return {
        "input": {
            "where": params.input, "files": collection.files, "files_left_out": collection.left_out,
            "documents_by_source": dict(sorted(Counter(document.source for document in collection.documents).items())),
            "broken": collection.broken, "digest": texts.hexdigest(),
        },
        "funnel": funnel.steps,
        "kept_by_source": dict(sorted(Counter(document.source for document in funnel.documents).items())),
        "sizes": sizes,
        "tokenizer": {"vocab_size": tokenizer.get_vocab_size(), "bytes_per_token": sizes["bytes_per_token"]},
        "tasks": {
            "demonstrations": DEMONSTRATIONS,
            "families": {family: _describe(family, params, tasks) for family in params.tasks.flawed},
        },
    }


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
