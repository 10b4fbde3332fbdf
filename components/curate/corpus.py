"""The artifact's text side: held-out split, tokenizer, Megatron token files, held-out text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash
from tokenizers import Tokenizer

from components.curate.document import Document, size
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import write_atomic, write_json
from stagecraft.data.indexed import write_indexed
from stagecraft.data.tokenizer import EOD, save_tokenizer, train_tokenizer

_BATCH = 64  # documents tokenised at a time


def split_heldout(documents: list[Document], share: float) -> tuple[list[Document], list[Document]]:
    """(train, heldout): a document is held out by a hash of its id, whatever else is in the corpus.

    Not by the id itself: the sample is the documents with the smallest ids.

    Raises:
        UserError: one of the two would be empty.
    """
    held = {document.id: xxhash.xxh64_intdigest(f"heldout/{document.id}".encode()) < share * 2**64 for document in documents}
    heldout = [document for document in documents if held[document.id]]
    train = [document for document in documents if not held[document.id]]
    if not heldout or not train:
        raise UserError(f"{len(documents)} documents are too few to hold out a share of {share}", where="curate.heldout_share",
                        mend="give more documents or another share")
    return train, heldout


def train_on(documents: list[Document], tasks: list[dict[str, Any]], vocab_size: int, sample_bytes: int) -> Tokenizer:
    """Train the tokenizer on the first `sample_bytes` of the documents and on the text of the tasks.

    The tasks are in the sample so that their words and the roles of the chat are few tokens; no held-out text is.
    """
    return train_tokenizer(_sample(documents, tasks, sample_bytes), vocab_size)


def write_corpus(directory: Path, tokenizer: Tokenizer, train: list[Document], heldout: list[Document],
                 max_length: int) -> dict[str, float]:
    """Write tokenizer/, tokens/, blend.json and heldout/text.jsonl; returns the sizes that the stage reports."""
    save_tokenizer(tokenizer, directory / "tokenizer", max_length)
    vocab_size = tokenizer.get_vocab_size()
    counted = {
        split: write_indexed(directory / "tokens" / split, _encode(tokenizer, documents), vocab_size)
        for split, documents in (("train", train), ("heldout", heldout))
    }
    write_json(directory / "blend.json", {split: [[f"tokens/{split}", 1.0]] for split in counted})
    rows = ({"id": document.id, "source": document.source, "text": document.text} for document in heldout)
    write_atomic(directory / "heldout" / "text.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    train_bytes, heldout_bytes = size(train), size(heldout)
    return {
        "documents": counted["train"][0], "bytes": train_bytes, "tokens": counted["train"][1],
        "heldout_documents": counted["heldout"][0], "heldout_bytes": heldout_bytes, "heldout_tokens": counted["heldout"][1],
        "bytes_per_token": round(heldout_bytes / (counted["heldout"][1] - counted["heldout"][0]), 4),
        "vocab_size": vocab_size,
    }


def _sample(documents: list[Document], tasks: list[dict[str, Any]], sample_bytes: int) -> Iterator[str]:
    for row in tasks:
        tools = " ".join(f"{tool['function']['name']}({', '.join(tool['function']['parameters']['properties'])}: string integer)"
                         for tool in row.get("tools", ()))
        yield f"system\nTools: {tools}\nuser\n{row['messages'][0]['content']}\nassistant\n"
        yield from row["demonstration"].removeprefix("<think>").split("</think>")
    taken = 0
    for document in documents:
        if taken >= sample_bytes:
            return
        taken += len(document.text)
        yield document.text


def _encode(tokenizer: Tokenizer, documents: list[Document]) -> Iterator[list[int]]:
    end = tokenizer.token_to_id(EOD)
    for start in range(0, len(documents), _BATCH):
        batch = [document.text for document in documents[start:start + _BATCH]]
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            yield [*encoding.ids, end]
