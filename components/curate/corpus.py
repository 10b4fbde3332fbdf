"""The artifact's text side: Megatron token files by category and tier, the record of what lies where, held-out text, blends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from components.curate.blend import Group, Portion, blend, entries, group_of, prefix
from components.curate.catalogue import Catalogue
from components.curate.document_qa import ask
from components.curate.params import BlendParams
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import write_json
from stagecraft.data.indexed import IndexedWriter
from stagecraft.data.lineage import SCHEMA, record_path
from stagecraft.data.rows import RowWriter
from stagecraft.data.tokenizer import EOD

HELDOUT, LONG = "tokens/heldout", "tokens/long-document-qa"
_BATCH = 64  # documents tokenised at a time


@dataclass
class TokenFile:
    """One open token file with the record of its documents, and what it came to."""

    tokens: IndexedWriter
    records: RowWriter
    bytes: int = 0
    counted: tuple[int, int] = field(default=(0, 0))  # documents, tokens


class TokenFiles:
    """Token files that are written side by side."""

    def __init__(self, directory: Path, tokenizer: Tokenizer):
        self._directory, self._tokenizer = directory, tokenizer
        self._end = tokenizer.token_to_id(EOD)
        tokenizer.encode_special_tokens = True  # a text may quote what a tokenizer from elsewhere has for special tokens
        self.files: dict[str, TokenFile] = {}

    def add(self, documents: Iterable[dict[str, Any]], where: Callable[[dict[str, Any]], str]) -> None:
        """Tokenise documents, each into the file that `where` names."""
        documents = iter(documents)
        while batch := list(islice(documents, _BATCH)):
            encodings = self._tokenizer.encode_batch_fast([document["text"] for document in batch], add_special_tokens=False)
            for document, encoding in zip(batch, encodings):
                file = self._open(where(document))
                file.tokens.add([*encoding.ids, self._end])
                file.records.add({**document, "tokens": len(encoding.ids) + 1})
                file.bytes += len(document["text"].encode())

    def close(self) -> dict[str, TokenFile]:
        """Finish all files; `counted` is known then."""
        for file in self.files.values():
            file.records.close()
            file.counted = file.tokens.close()
        return dict(sorted(self.files.items()))

    def _open(self, name: str) -> TokenFile:
        if name not in self.files:
            path = self._directory / name
            self.files[name] = TokenFile(IndexedWriter(path, self._tokenizer.get_vocab_size()), RowWriter(record_path(path), SCHEMA))
        return self.files[name]


def write_tokens(directory: Path, tokenizer: Tokenizer, catalogue: Catalogue, heldout: np.ndarray, long_min_characters: int,
                 done: Callable[[], None]) -> dict[str, TokenFile]:
    """Write tokens/<category>-tier<n>, tokens/heldout, tokens/long-document-qa, each .bin, .idx and .documents.parquet, and
    heldout/text.jsonl.

    Args:
        heldout: mask of the kept documents that are held out.
        done: called after each of the three kinds.
    """
    train = catalogue.kept & ~heldout
    files = TokenFiles(directory, tokenizer)
    files.add(catalogue.iterate(train), lambda document: prefix((document["category"], document["tier"])))
    done()
    (directory / "heldout").mkdir()
    with open(directory / "heldout" / "text.jsonl", "w") as stream:
        files.add(_written(catalogue.iterate(heldout), stream.write), lambda _: HELDOUT)
    done()
    files.add(_questions(catalogue.iterate(train), long_min_characters), lambda _: LONG)
    done()
    return files.close()


def write_blends(directory: Path, files: dict[str, TokenFile], params: BlendParams) -> dict[str, dict[Group, Portion]]:
    """Write blend.json: [[token file, weight], ...] of `phase1`, `phase2`, `long` and `heldout`; returns the two phases.

    Raises:
        UserError: a weight is for something that is not there.
    """
    tokens = {group: file.counted[1] for name, file in files.items() if (group := group_of(name))}
    phases = {name: blend(name, getattr(params, name), tokens, params.max_epochs) for name in ("phase1", "phase2")}
    if params.long_share and LONG not in files:
        raise UserError(f"no document of {params.long_min_characters} characters to ask about", where="curate.blend.long_min_characters",
                        mend="make it smaller, or curate.blend.long_share 0")
    long = [[LONG, params.long_share], *entries(phases["phase2"], 1 - params.long_share)]
    write_json(directory / "blend.json", {
        **{name: entries(portions) for name, portions in phases.items()},
        "long": [[name, weight] for name, weight in long if weight > 0], "heldout": [[HELDOUT, 1.0]],  # Megatron refuses a weight of 0
    })
    return phases


def _written(documents: Iterator[dict[str, Any]], write: Callable[[str], object]) -> Iterator[dict[str, Any]]:
    for document in documents:
        write(json.dumps({key: document[key] for key in ("id", "source", "category", "text")}) + "\n")
        yield document


def _questions(documents: Iterator[dict[str, Any]], shortest: int) -> Iterator[dict[str, Any]]:
    for document in documents:
        if len(document["text"]) >= shortest:
            text = ask(document["text"], document["id"])
            if text is not None:
                yield {**document, "text": text}
