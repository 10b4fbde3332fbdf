"""The corpus's tokenizer: trained on a sample that is mixed like the first phase, or given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from components.curate.blend import Group, blend
from components.curate.catalogue import Catalogue
from components.curate.params import Params
from stagecraft.contract.errors import UserError
from stagecraft.data.tokenizer import load_tokenizer, train_tokenizer

TRAIN = "train"
_BYTES_PER_TOKEN = 4  # before there is a tokenizer; only how often a small category may be repeated depends on it


def make_tokenizer(catalogue: Catalogue, train: np.ndarray, tasks: list[dict[str, Any]], params: Params) -> Tokenizer:
    """Train the tokenizer on training documents and the tasks' text, or load the given one.

    Raises:
        UserError: too little text for the vocabulary; the given directory holds no fit tokenizer, or one of another size.
    """
    if params.tokenizer == TRAIN:
        return train_tokenizer(_sample(catalogue, train, tasks, params), params.vocab_size, params.reserved_tokens)
    tokenizer = load_tokenizer(params.tokenizer).backend_tokenizer
    if tokenizer.get_vocab_size() != params.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, curate.vocab_size says {params.vocab_size}",
                        where=params.tokenizer, mend=f"set curate.vocab_size to {tokenizer.get_vocab_size()}")
    tokenizer.no_truncation()  # with a tokenizer Hugging Face saves how its last call shortened and filled up rows
    tokenizer.no_padding()
    return tokenizer


def groups(catalogue: Catalogue) -> list[Group]:
    """(category, tier) of every document."""
    return list(zip(catalogue.table["category"].to_pylist(), catalogue.table["tier"].to_pylist()))


def _sample(catalogue: Catalogue, train: np.ndarray, tasks: list[dict[str, Any]], params: Params) -> Iterator[str]:
    for row in tasks:
        tools = " ".join(f"{tool['function']['name']}({', '.join(tool['function']['parameters']['properties'])}: string integer)"
                         for tool in row.get("tools", ()))
        yield f"system\nTools: {tools}\nuser\n{row['messages'][0]['content']}\nassistant\n"
        yield from row["demonstration"].removeprefix("<think>").split("</think>")
    for document in catalogue.iterate(_chosen(catalogue, train, params), ["text"]):
        yield document["text"]


def _chosen(catalogue: Catalogue, train: np.ndarray, params: Params) -> np.ndarray:
    """Mask of the documents with the smallest ids that fill each group's part of `tokenizer_bytes`."""
    sizes, ids, labels = catalogue.column("bytes"), catalogue.table["id"].to_pylist(), groups(catalogue)
    available: dict[Group, int] = {}
    for index in np.flatnonzero(train):
        available[labels[index]] = available.get(labels[index], 0) + int(sizes[index])
    tokens: Mapping[Group, int] = {group: max(1, size // _BYTES_PER_TOKEN) for group, size in available.items()}
    budget = {group: portion.weight * params.tokenizer_bytes
              for group, portion in blend("phase1", params.blend.phase1, tokens, params.blend.max_epochs).items()}
    chosen, taken = np.zeros(len(train), bool), dict.fromkeys(budget, 0)
    for index in sorted(np.flatnonzero(train), key=ids.__getitem__):
        group = labels[index]
        if group in budget and taken[group] < budget[group]:
            taken[group] += int(sizes[index])
            chosen[index] = True
    return chosen
