"""A corpus small enough to evaluate a tiny random model on in seconds, and parameters to match."""

import inspect
import textwrap

import pytest

from components.evaluate.params import Benchmarks, Params, Sampling, Tasks, Text
from stagecraft.contract import manifest
from stagecraft.contract.files import write_json
from stagecraft.data.tasks import draw_splits, write_rows
from tests.checkpoints import tiny_checkpoint, tiny_tokenizer
from tests.evaluate.made import GATE
from tests.indexed import write_indexed

PARAMS = Params(
    seed=7, processes=2, tensor=1, threads=1, dtype="float32", max_model_len=160, max_num_seqs=8, tasks=Tasks(prompts=6, max_new_tokens=12),
    text=Text(bytes=1500, document_bytes=400, window=48, overlap=16),
    pass_at_k=Sampling(models=["base"], prompts=3, samples=4, temperature=1.0), contamination=True, gate=GATE,
    benchmarks=Benchmarks(tasks=["needle", "instructions"], data="", prompts=4, lengths=[10, 20], max_new_tokens=8))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """The parts of a corpus artifact that the stage reads."""
    directory = tmp_path_factory.mktemp("corpus")
    tasks = draw_splits({"sft": 2, "rl": 2, "heldout": 20}, {"sort": 0.0, "arithmetic": 0.0, "tool": 0.0}, 0)
    for split, rows in tasks.items():
        write_rows(directory / "tasks" / f"{split}.jsonl", rows)
    write_rows(directory / "tasks" / "rl.jsonl", [*tasks["rl"], tasks["heldout"][0]])  # leaked
    source = inspect.getsource(textwrap)
    documents = source.split("\n\n")
    write_rows(directory / "heldout" / "text.jsonl", [{"id": f"d{i}", "source": "textwrap", "text": text + " \u2028 é"}
                                                      for i, text in enumerate(documents)])
    tokenizer = tiny_tokenizer()
    (directory / "tokenizer").mkdir()
    tokenizer.backend_tokenizer.save(str(directory / "tokenizer" / "tokenizer.json"))
    write_indexed(directory / "tokens" / "code-tier3", [tokenizer.encode(source[:len(source) // 2])], len(tokenizer))
    write_json(directory / "report.json", {"tasks": {"demonstrations": "None: these models are random."}})
    return directory


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny random canonical checkpoint with a manifest."""
    directory = tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    manifest.write(directory, stage="rl", params={}, inputs={}, code="", environment={}, metrics={"loss_last": 7.6})
    return directory
