"""Makes the synthetic documents and task rows: drawn from templates or asked of a model, verified, and written where the shards read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from components.curate.catalogue import Catalogue
from components.curate.params import SyntheticParams
from components.curate.reading.listing import File
from components.curate.synthetic import SOURCE
from components.curate.synthetic.author import Author
from components.curate.synthetic.families import FAMILIES
from components.curate.synthetic.item import Item, task_row
from components.curate.synthetic.replies import BadReplyError, item_of, request
from components.curate.synthetic.verify import failure
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import sha256, write_atomic
from stagecraft.contract.runlog import RunLog
from stagecraft.data.decontamination import EvaluationIndex
from stagecraft.data.scan import scan
from stagecraft.environments import verify

_LICENCE = "Apache-2.0"  # of what our templates write; of what a model wrote nothing is known
_TRIES = 3  # draws per item wanted, before a family counts as exhausted


@dataclass
class Account:
    """What became of a family.

    Args:
        generated: drawn from templates, or replies looked at.
        rejected: reason -> how many.
        documents, rows: how many were verified and written.
        sample: the first document.
    """

    generated: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    documents: int = 0
    rows: int = 0
    sample: str = ""

    def plain(self) -> dict[str, Any]:
        """As plain data, reasons sorted."""
        return {**asdict(self), "rejected": dict(sorted(self.rejected.items()))}


@dataclass
class Synthetic:
    """The files to read, the rows that join the sets of tasks `sft` and `rl`, and the account of each family."""

    files: list[File]
    rows: dict[str, list[dict[str, Any]]]
    accounts: dict[str, Account]

    def metrics(self, catalogue: Catalogue) -> dict[str, float]:
        """`synthetic_documents` that are left after all steps, `synthetic_rows` of the tasks."""
        return {"synthetic_documents": sum(counts["kept"] for counts in self.report(catalogue).values()),
                "synthetic_rows": sum(account.rows for account in self.accounts.values())}

    def report(self, catalogue: Catalogue) -> dict[str, dict[str, Any]]:
        """Family -> its account, with the documents that `passed` the steps of the shards and those `kept` after deduplication."""
        mine = catalogue.column("source") == SOURCE
        family = [path.partition(".")[0] for path in catalogue.column("path")[mine]]
        passed, kept = Counter(family), Counter(name for name, stays in zip(family, catalogue.kept[mine]) if stays)
        return {name: {**account.plain(), "passed": passed[name], "kept": kept[name]} for name, account in self.accounts.items()}


def file_name(family: str) -> str:
    """Name of a family's file below its source; documents are `name:row`."""
    return f"{family}.jsonl"


def make(params: SyntheticParams, seed: int, index: EvaluationIndex, results: Path, log: RunLog) -> Synthetic:
    """Make all families. Each draws from its own stream of the seed, so that one family leaves the others as they are.

    Args:
        index: of the evaluation sets, which no row may share text with; documents meet it in their shard.
        results: directory for the files and a model's replies; what lies there from an earlier run is used or replaced.

    Raises:
        UserError: the endpoint cannot be used, or a family's templates are exhausted.
    """
    made = Synthetic([], {"rl": [], "sft": []}, {})
    wanted = {family: count + params.rl_rows + params.sft_rows for family, count in params.documents.items()}
    if not sum(wanted.values()):
        return made
    author = Author(params.endpoint, results / "synthetic-replies.jsonl") if params.endpoint.url else None
    with log.bar("synthesising", total=sum(wanted.values()), unit="item") as bar:
        for family, count in params.documents.items():
            account = made.accounts[family] = Account()
            if author:
                candidates = _asked(author, family, wanted[family], seed, account, bar.advance)
            else:
                candidates = _drawn(family, wanted[family], seed, account)
            documents: list[Item] = []
            rows: list[dict[str, Any]] = []
            for item in _verified(candidates, account, trusted=author is None):
                if len(documents) < count:
                    documents.append(item)
                elif (row := _row(item, len(rows), index, account)) is not None:
                    rows.append(row)
                else:
                    continue
                if not author:
                    bar.advance()
                if len(documents) + len(rows) == wanted[family]:
                    break
            if not author and len(documents) + len(rows) < wanted[family]:
                raise UserError(f"the templates of {family} gave {len(documents) + len(rows)} of {wanted[family]} items, no prompt twice",
                                where="curate.synthetic", mend="ask for fewer documents or rows")
            account.documents, account.rows = len(documents), len(rows)
            account.sample = documents[0].document if documents else ""
            if documents:
                made.files.append(_write(results, family, documents, "" if author else _LICENCE))
            for number, row in enumerate(rows):  # RL's come first: they do not change when SFT's grow
                if number < params.rl_rows:
                    del row["demonstration"], row["mode"]
                    made.rows["rl"].append(row)
                else:
                    made.rows["sft"].append(row)
    if author:
        log.note(f"{author.asked} replies of {params.endpoint.model} asked for, the others were there")
    return made


def _drawn(family: str, count: int, seed: int, account: Account) -> Iterator[Item]:
    random = Random(f"{seed}/synthetic/{family}")
    for _ in range(_TRIES * count + 100):
        account.generated += 1
        yield FAMILIES[family].draw(random)


def _asked(author: Author, family: str, count: int, seed: int, account: Account, done: Callable[[], None]) -> Iterator[Item]:
    prompts = [request(family, number, seed) for number in range(count)]
    for number, reply in enumerate(author.replies(prompts)):
        account.generated += 1
        done()
        try:
            yield item_of(family, number, reply)
        except BadReplyError as error:
            account.rejected[str(error)] += 1


def _verified(items: Iterator[Item], account: Account, trusted: bool) -> Iterator[Item]:
    """Those that are verified and whose prompt is new."""
    seen: set[str] = set()
    for item in items:
        key = " ".join(item.prompt.lower().split())
        reason = "repeated" if key in seen else failure(item, trusted)
        seen.add(key)
        if reason is None:
            yield item
        else:
            account.rejected[reason] += 1


def _row(item: Item, number: int, index: EvaluationIndex, account: Account) -> dict[str, Any] | None:
    """The item as a task row, unless its demonstration fails or it shares text with an evaluation set."""
    row = task_row(item, number)
    matches = index.matches(item.prompt, scan(item.prompt))
    if matches:
        account.rejected[f"row_in_{matches[0].set}"] += 1
    elif verify(row, row["demonstration"]).score != 1:
        account.rejected["demonstration_fails"] += 1
    else:
        return row
    return None


def _write(results: Path, family: str, documents: list[Item], licence: str) -> File:
    """A family's documents as JSON lines. The stamp is the content's, so equal documents have an equal shard."""
    path = results / f"synthetic-{file_name(family)}"
    rows = ({"text": item.document, "id": f"{family}-{number:06d}", "category": FAMILIES[family].category, "licence": licence}
            for number, item in enumerate(documents))
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
    return File(SOURCE, file_name(family), str(path), path.stat().st_size, sha256(path), "jsonl")
