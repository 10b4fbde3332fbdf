"""How much of what is asked stands in what was trained on: 13 words in a row, or a shorter prompt as whole lines, signs and all.

Curation keeps the held-out tasks out of the text it makes; this looks again, at what really went into training, and at every task
and document of the evaluation, which curation may never have heard of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from stagecraft.data.decontamination import EvaluationIndex, forms, grams
from stagecraft.data.indexed import read_indexed
from stagecraft.data.scan import scan
from stagecraft.data.tasks import read_rows

HELDOUT = "heldout"
_BATCH = 64


@dataclass(frozen=True)
class Overlap:
    """What training text and one evaluation set share.

    Attributes:
        texts: of the set.
        found: those that share 13 words in a row with a training text, or are shorter and stand in one as whole lines.
        rows: which they are.
    """

    texts: int
    found: int
    rows: list[int]


def check(corpus: Path, sets: Mapping[str, Sequence[str]]) -> dict[str, Overlap]:
    """Look for the texts of every set in all that the corpus trains on: token files, SFT and RL rows.

    Args:
        corpus: the corpus artifact.
        sets: name -> texts.
    """
    index = EvaluationIndex.build(sets)
    written = {name: [[(_lines(form), grams(scan(form))) for form in forms(text)] for text in texts] for name, texts in sets.items()}
    divided = [lines for texts in written.values() for text in texts for lines, hashes in text if not hashes.size]
    short, counts = {" ".join(lines) for lines in divided if lines}, {len(lines) for lines in divided if lines}
    shared, standing = [np.empty(0, np.uint64)], set()
    for text in training_texts(corpus):
        shared.append(index.shared(scan(text)))
        lines = _lines(text)
        for count in counts:
            standing.update(short.intersection(" ".join(lines[start:start + count]) for start in range(len(lines) - count + 1)))
    seen = np.unique(np.concatenate(shared))
    overlaps = {}
    for name, texts in written.items():
        rows = [row for row, text in enumerate(texts)
                if any(" ".join(lines) in standing or np.isin(hashes, seen).any() for lines, hashes in text)]
        overlaps[name] = Overlap(len(texts), len(rows), rows)
    return overlaps


def training_texts(corpus: Path) -> Iterator[str]:
    """Every document that may be trained on, and every prompt with its demonstration."""
    tokenizer = Tokenizer.from_file(str(corpus / "tokenizer" / "tokenizer.json"))
    for path in sorted((corpus / "tokens").glob("*.bin")):
        if path.stem != HELDOUT:
            documents = read_indexed(path.with_suffix(""))
            for start in range(0, len(documents), _BATCH):
                yield from tokenizer.decode_batch([tokens.tolist() for tokens in documents[start:start + _BATCH]])
    for split in ("sft", "rl"):
        for row in read_rows(corpus / "tasks" / f"{split}.jsonl"):
            yield "\n".join([*(message["content"] for message in row["messages"]), row.get("demonstration", "")])


def _lines(text: str) -> list[str]:
    """The lines that are not blank, in lower case with single blanks."""
    return [line for line in (" ".join(line.split()) for line in text.lower().split("\n")) if line]
