"""One random checkpoint, one engine on it and the same model in transformers, shared by the tests."""

from __future__ import annotations

import random

import flask.globals  # noqa: F401 - the engine must start beside what MLflow imports ...
import llvmlite.binding  # noqa: F401 - ... and beside numba, which curation's tests import
import pytest
import torch
from transformers import NemotronHForCausalLM

from stagecraft.inference.engine import Engine
from tests.checkpoints import VOCABULARY, tiny_checkpoint
from tests.inference.foresight import foreseeing_checkpoint

LENGTH, SEQUENCES = 96, 16


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("inference") / "tiny")


@pytest.fixture(scope="module")
def engine(checkpoint):
    with Engine(checkpoint, max_model_len=LENGTH, max_num_seqs=SEQUENCES) as started:
        yield started


@pytest.fixture(scope="package")
def transformer(checkpoint):
    return NemotronHForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="package")
def foreseeing(tmp_path_factory):
    """A checkpoint whose drafts are accepted at times."""
    return foreseeing_checkpoint(tmp_path_factory.mktemp("foreseeing") / "model")


@pytest.fixture(scope="package")
def reference(foreseeing):
    """The same model in transformers."""
    return NemotronHForCausalLM.from_pretrained(foreseeing, dtype=torch.float32).eval()


def draw_prompts(count: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(5, VOCABULARY) for _ in range(draw.randrange(1, 40))] for _ in range(count)]


@torch.no_grad()
def reference_logprobs(model: torch.nn.Module, sequence: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probability of every token after the first, by one full forward pass."""
    table = (model(torch.tensor([sequence])).logits[0, :-1].float() / temperature).log_softmax(-1)
    return table.gather(1, torch.tensor(sequence[1:])[:, None])[:, 0]


@torch.no_grad()
def greedy(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens without any cache: the whole sequence again for each."""
    sequence = list(prompt)
    for _ in range(count):
        sequence.append(int(model(torch.tensor([sequence])).logits[0, -1].argmax()))
    return sequence[len(prompt):]
