"""The stage on a tiny random model in the real engine: against transformers, twice, interrupted, and with broken input."""

import json
import math
import os
import shutil
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lxml import etree
from transformers import NemotronHForCausalLM

from components.evaluate import stage, workers
from components.evaluate.params import MODELS
from components.evaluate.text import windows
from components.evaluate.workload import choose
from stagecraft.contract import manifest
from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog
from stagecraft.data.chat import encode_prompt
from stagecraft.data.tokenizer import load_tokenizer
from tests.evaluate.conftest import PARAMS


def run_log(root, name="run"):
    (root / name).mkdir(exist_ok=True)
    return RunLog("evaluate", root / "plots", root / name)


@pytest.fixture(scope="module")
def base(corpus, checkpoint, tmp_path_factory):
    """The worker's result for one model."""
    log = run_log(tmp_path_factory.mktemp("work"))
    return workers.run_all({"base": (checkpoint, manifest.read(checkpoint)["digest"])}, choose(corpus, PARAMS), PARAMS, log)["base"]


@pytest.fixture(scope="module")
def reference(checkpoint):
    return SimpleNamespace(model=NemotronHForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval(),
                           tokenizer=load_tokenizer(checkpoint))


def test_bits_are_those_of_transformers(base, corpus, reference):
    documents = choose(corpus, PARAMS).documents
    for document, found in zip(documents, base["texts"], strict=True):
        tokens = reference.tokenizer.encode(document["text"], add_special_tokens=False) + [2] * document["whole"]
        nats = 0.0
        for window in windows(tokens, 2, PARAMS.text.window, PARAMS.text.overlap):
            sequence = torch.tensor([window.tokens])
            with torch.no_grad():
                logprobs = reference.model(sequence, use_cache=False).logits[0, :-1].log_softmax(-1)
            nats -= logprobs.gather(1, sequence[0, 1:, None])[window.scored - 1:].sum().item()
        assert found["tokens"] == len(tokens)
        assert found["bytes"] == len(document["text"].encode())
        assert found["bits"] == pytest.approx(nats / math.log(2), abs=2e-3)


def test_answers_are_those_of_transformers(base, corpus, reference):
    for row, answer in zip(choose(corpus, PARAMS).rows, base["answers"], strict=True):
        sequence = encode_prompt(reference.tokenizer, row)
        spoken = []
        while len(spoken) < PARAMS.tasks.max_new_tokens and (not spoken or spoken[-1] != 4):
            with torch.no_grad():
                spoken.append(int(reference.model(torch.tensor([sequence + spoken]), use_cache=False).logits[0, -1].argmax()))
        finished = spoken[-1] == 4
        assert (answer["id"], answer["finished"]) == (row["id"], finished)
        assert answer["completion"] == reference.tokenizer.decode(spoken[:-1] if finished else spoken)


def test_sampled_answers_are_counted(base):
    assert [row["samples"] for row in base["sampled"]] == [4, 4, 4]


def test_the_whole_stage_goes_on_where_it_was_killed(base, corpus, checkpoint, tmp_path):
    """Four of five models are done, the fifth is evaluated now: with the same figures, as it is the same model."""
    log = run_log(tmp_path)
    for name in MODELS[1:]:
        (log.work / f"{name}.json").write_text(json.dumps({**base, "model": {**base["model"], "name": name}}))
    before = {path: path.stat().st_mtime_ns for path in log.work.glob("*.json")}
    out = tmp_path / "evaluation"
    metrics = stage.main(PARAMS, {"corpus": corpus, **dict.fromkeys(MODELS, checkpoint)}, {"evaluation": out}, log)

    assert {path: path.stat().st_mtime_ns for path in before} == before
    again = json.loads((log.work / "base.json").read_text())
    assert again == base
    assert {metrics[name]["bits_per_byte"] for name in MODELS} == {metrics["base"]["bits_per_byte"]}
    assert metrics["comparisons"]["nvfp4_minus_aligned"]["exact_match"] == 0
    assert (metrics["promoted"], metrics["promoted_exact_match"]) == ("none", 0.0)
    verdict = json.loads((out / "promotion.json").read_text())
    assert verdict["promoted"] is verdict["digest"] is None
    assert "2.4 bits per byte" in verdict["reason"]
    assert len((out / "answers" / "fp8.jsonl").read_text().splitlines()) == 6 + 2 * 4
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["protocol_digest"] == verdict["protocol_digest"]
    assert set(metrics["base"]["benchmarks"]) == {"needle", "instructions"}
    assert evaluation["contamination"]["task families"]["rows"] == [0], "the row that leaked into the RL set, and no other"
    assert 0 < evaluation["contamination"]["held-out documents"]["found"] < evaluation["contamination"]["held-out documents"]["texts"]
    assert evaluation["contamination"]["needle"]["found"] == 0
    etree.parse(out / "report.html")


def test_an_unreadable_checkpoint_is_one_line(corpus, checkpoint, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    (broken / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: not the configuration of a checkpoint"):
        workers.run_all({"sft": (broken, "d")}, choose(corpus, PARAMS), PARAMS, run_log(tmp_path))


def dying(job, output, progress):
    """In place of a worker's work."""
    progress.send(3)
    output.write_text("out of luck\n" * all(name in sys.modules for name in ("vllm.v1.engine.llm_engine", "lm_eval.evaluator")))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_says_its_last_lines_and_needed_no_import(corpus, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "run", dying)
    with pytest.raises(RuntimeError, match=r"(?s)evaluation of sft was killed by signal 9; its last lines:\nout of luck"):
        workers.run_all({"sft": (checkpoint, "d")}, choose(corpus, PARAMS), PARAMS, run_log(tmp_path))


def test_a_prompt_that_does_not_fit_is_named(corpus, checkpoint, tmp_path):
    tight = replace(PARAMS, max_model_len=50, tasks=replace(PARAMS.tasks, max_new_tokens=45))
    with pytest.raises(UserError, match=r"evaluate.max_model_len: the prompt of \w+-\d+ has \d+ tokens"):
        workers.run_all({"sft": (checkpoint, "d")}, choose(corpus, tight), tight, run_log(tmp_path))
