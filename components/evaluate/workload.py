"""What every model is asked: chosen once, so that all five answer the same prompts and read the same documents."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from components.evaluate.params import Params
from components.evaluate.text import clip
from stagecraft.contract.errors import UserError
from stagecraft.data.tasks import read_rows

TASKS, DOCUMENTS = "task families", "held-out documents"
"""Evaluation sets besides the benchmarks."""


@dataclass(frozen=True)
class Workload:
    """The prompts and documents of one evaluation.

    Attributes:
        rows: task rows, in the order they are asked in.
        documents: {"id", "source", "text", "whole"}; `whole` is False for a document that was cut at `document_bytes`.
    """

    rows: list[dict[str, Any]]
    documents: list[dict[str, Any]]

    def texts(self, benchmarks: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
        """What is asked, by evaluation set: the prompts of the task families and of each benchmark, and the documents."""
        families = ["\n".join(message["content"] for message in row["messages"]) for row in self.rows]
        return {TASKS: families, **{name: found["prompts"] for name, found in benchmarks.items()},
                DOCUMENTS: [document["text"] for document in self.documents]}


def choose(corpus: Path, params: Params) -> Workload:
    """Choose from the corpus: the first rows of every family in file order, and documents in an order drawn from the seed.

    Raises:
        UserError: too few held-out tasks, in all or of a family, or documents for a standard error.
    """
    rows = evenly(read_rows(corpus / "tasks" / "heldout.jsonl"), params.tasks.prompts)
    documents = _documents(corpus / "heldout" / "text.jsonl", params)
    for kind, found, path in (("task rows", rows, "tasks/heldout.jsonl"), ("documents", documents, "heldout/text.jsonl")):
        if len(found) < 2:
            raise UserError(f"{len(found)} {kind}, a standard error needs two", where=str(corpus / path),
                            mend="give curate more text or a larger held-out share")
    for family, found in Counter(row["family"] for row in rows).items():
        if found < 2:
            raise UserError(f"{found} task rows of family {family!r}, a standard error needs two",
                            where=str(corpus / "tasks/heldout.jsonl"), mend="raise evaluate.tasks.prompts, or curate.tasks.heldout_rows")
    return Workload(rows, documents)


def evenly(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most `limit` rows, as many of each family as of the others if there are enough, in their order."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    share, rest = divmod(limit, max(1, len(families)))
    quota = {family: share + (index < rest) for index, family in enumerate(families)}
    taken: Counter[str] = Counter()
    chosen = []
    for row in rows:
        if taken[row["family"]] < quota[row["family"]]:
            taken[row["family"]] += 1
            chosen.append(row)
    return chosen


def _documents(path: Path, params: Params) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as stream:
            lines = list(stream)  # not splitlines(): a JSON string may hold U+2028 as it is
    except OSError as error:
        raise UserError(f"cannot read held-out documents: {error.strerror}", where=str(path),
                        mend="run the stage that makes it: curate") from None
    Random(params.seed).shuffle(lines)
    chosen, total = [], 0
    for line in lines:
        if total >= params.text.bytes:
            break
        document = json.loads(line)
        text, whole = clip(document["text"], params.text.document_bytes)
        if text:
            chosen.append({"id": document["id"], "source": document["source"], "text": text, "whole": whole})
            total += len(text.encode())
    return chosen
