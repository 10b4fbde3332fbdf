"""The loop of fine-tuning: which packs a step learns from, and what becomes of one that gives no number or does not end."""

import json
import re
from dataclasses import replace
from threading import Event
from types import SimpleNamespace

import pytest

from components.sft.conversations import Encoded
from components.sft.params import Data
from components.sft.train import Packs, train
from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog
from stagecraft.engine import parallel, watchdog
from stagecraft.engine.trainer import Optimization, Trainer
from tests.architectures import tiny
from tests.checkpoints import tiny_tokenizer
from tests.sft.test_objective import PARAMS

LATER = replace(PARAMS.stages[0], steps=2, loss_mean="conversations", pack_tokens=96, packs_per_step=2)


@pytest.fixture
def tune(tmp_path, monkeypatch):
    """A run of five steps: what it is given, what it made its batches of, and how to start it; `batch` is what it calls for one."""
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "mine.jsonl"
    conversations = [[{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "so " * at}] for at in range(1, 21)]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    params = replace(PARAMS, steps=5, warmup_steps=1, decay_steps=1, processes=1, pack_tokens=128, packs_per_step=1, later_stages=[LATER],
                     mtp_depths=0, checkpoint_every=100, data=Data(tasks=False, files=[str(path)], bad_rows="fail"))
    parallel.initialize(0)
    shapes, log = tiny(vocab_size=2048), RunLog("sft", tmp_path / "plots", tmp_path)
    weights = Trainer(shapes, Optimization(lr=1e-3, steps=1), max_sequence_length=128).weights()
    found = SimpleNamespace(params=params, log=log, learnt=[], batch=Packs.batch)

    def batch(packs, pack):
        found.learnt.append((packs.stage.loss_mean, pack))
        return found.batch(packs, pack)

    monkeypatch.setattr(Packs, "batch", batch)
    found.run = lambda **changes: train(replace(params, **changes), shapes, weights, tmp_path, tmp_path, log)
    yield found
    parallel.shutdown()


def test_every_step_learns_from_the_next_packs_of_its_stage(tune, tmp_path):
    result = tune.run()
    biases = [tensor for name, tensor in result.weights.items() if "e_score_correction_bias" in name]
    assert biases and all(not tensor.any() for tensor in biases)  # the routers' balance stays as it came
    first, second = (Packs(Encoded(tmp_path / f"conversations-{at}"), stage, tune.params.seed + at)
                     for at, stage in enumerate(tune.params.stages))
    assert tune.learnt == [*(("tokens", first[at][0]) for at in range(3)),
                           *(("conversations", pack) for at in range(2) for pack in second[at])]
    assert result.conversations == 20 and len({tuple(pack) for _, pack in tune.learnt}) == 7


def test_a_step_without_a_number_is_skipped_and_too_many_end_the_run(tune):
    inner = tune.batch

    def broken(packs, pack):
        made = inner(packs, pack)
        weights = made.loss_mask * (float("nan") if len(tune.learnt) in (2, 3) else 1)
        return replace(made, loss_mask=weights, counted=made.targets)

    tune.batch = broken
    with pytest.raises(UserError, match=r"^sft: loss nan .* at step 3, after 1 steps in a row that were skipped"):
        tune.run(max_skipped_steps=1)
    tune.learnt.clear()
    tune.run(max_skipped_steps=2)
    assert [row["step"] for row in tune.log.curve()] == [1, 4, 5]


def test_a_training_without_a_number_is_one_line(tune):
    inner = tune.batch

    def broken(packs, pack):
        made = inner(packs, pack)
        return replace(made, loss_mask=made.loss_mask * float("nan"), counted=made.targets)

    tune.batch = broken
    with pytest.raises(UserError, match=r"^sft: none of the 5 steps had a finite loss"):
        tune.run(max_skipped_steps=5)


def test_a_step_that_hangs_ends_its_rank(tune, monkeypatch, capfd, tmp_path):
    inner, ended = tune.batch, Event()
    codes = []

    def end(code):  # it does not return either
        codes.append(code)
        ended.set()
        raise SystemExit

    monkeypatch.setattr(watchdog.os, "_exit", end)

    def hung(packs, pack):
        if len(tune.learnt) == 3:
            assert ended.wait(60)
        return inner(packs, pack)

    tune.batch = hung
    tune.run(hang_seconds=8)
    assert codes == [75]
    assert re.search(r"error: rank 0 has waited \d+ s in step 3: ", capfd.readouterr().err)
    assert "in hung" in (tmp_path / "ranks" / "stack-0.txt").read_text()
