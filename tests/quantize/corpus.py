"""A corpus just large enough to calibrate on: two task families and the text of two modules."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from pathlib import Path

from stagecraft.contract.files import write_json
from stagecraft.data.tasks import draw_splits, write_rows
from tests.checkpoints import VOCABULARY, tiny_tokenizer
from tests.indexed import write_indexed


def small_corpus(directory: Path, rows: int = 600) -> Path:
    """Write tokenizer/, tokens/{train,heldout}, blend.json and tasks/sft.jsonl."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(directory / "tokenizer")
    tasks = draw_splits({"sft": rows, "rl": 12, "heldout": 12}, {"sort": 0.0, "arithmetic": 0.0}, 0)
    write_rows(directory / "tasks" / "sft.jsonl", tasks["sft"])
    for split, module in (("train", argparse), ("heldout", textwrap)):
        documents = inspect.getsource(module).split("\n\n\n")
        write_indexed(directory / "tokens" / split, [[*tokenizer.encode(text), 2] for text in documents], VOCABULARY)
    write_json(directory / "blend.json", {"phase1": [["tokens/train", 1.0]], "heldout": [["tokens/heldout", 1.0]]})
    return directory
