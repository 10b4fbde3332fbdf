"""Rows of a user's files that cannot be learnt from: named by line, fatal or skipped and counted."""

import json
from dataclasses import replace

import pytest

from components.sft.params import Data
from components.sft.train import Packs, read_conversations, train
from stagecraft.contract.errors import UserError
from stagecraft.engine import parallel
from stagecraft.engine.trainer import Optimization, Trainer
from tests.architectures import tiny
from tests.checkpoints import tiny_tokenizer
from tests.sft.test_objective import PARAMS


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    tiny_tokenizer().save_pretrained(directory / "tokenizer")
    return directory


def test_what_is_too_long_is_a_bad_row_like_others(corpus, tmp_path):
    answers = ["yes", "no " * 200, "yes", None]
    lines = [json.dumps({"messages": [{"role": "user", "content": "is it?"}, {"role": "assistant", "content": answer}]})
             for answer in answers]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n" + "\n".join(lines) + "\n")
    params = replace(PARAMS, pack_tokens=64, data=Data(tasks=False, files=[str(path)], bad_rows="skip"))
    conversations, skipped = read_conversations(corpus, params, params.stages[0])
    assert len(conversations) == 2
    assert sorted(skipped)[0].startswith(f"{path}:3: ") and "tokens do not fit into a pack of 64" in sorted(skipped)[0]
    assert sorted(skipped)[1] == f"{path}:5: message 2: its content is no text"
    path.write_text("\n".join(lines[:2]))
    with pytest.raises(UserError, match=rf"{path}:2: [0-9]+ tokens do not fit into a pack of 64 - mend the line, or set bad_rows to skip"):
        read_conversations(corpus, replace(params, data=replace(params.data, bad_rows="fail")), params.stages[0])


def test_every_step_learns_from_the_next_packs_of_its_stage(corpus, tmp_path, monkeypatch):
    path = tmp_path / "mine.jsonl"
    conversations = [[{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "so " * at}] for at in range(1, 21)]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    later = replace(PARAMS.stages[0], steps=2, loss_mean="conversations", pack_tokens=96, packs_per_step=2)
    params = replace(PARAMS, steps=5, warmup_steps=1, decay_steps=1, processes=1, pack_tokens=128, packs_per_step=1, later_stages=[later],
                     mtp_depths=0, checkpoint_every=100, data=Data(tasks=False, files=[str(path)], bad_rows="fail"))
    parallel.initialize(0)
    shapes = tiny(vocab_size=2048)
    weights = Trainer(shapes, Optimization(lr=1e-3, steps=1), max_sequence_length=128).weights()
    learnt, inner = [], Packs.batch
    monkeypatch.setattr(Packs, "batch", lambda self, pack: learnt.append((self.stage.loss_mean, pack)) or inner(self, pack))
    result = train(params, shapes, weights, corpus, tmp_path, None)
    first, second = (Packs(read_conversations(corpus, params, stage)[0], stage, params.seed + at) for at, stage in enumerate(params.stages))
    assert learnt == [*(("tokens", first[at][0]) for at in range(3)),
                      *(("conversations", pack) for at in range(2) for pack in second[at])]
    assert result.conversations == 20 and len({tuple(pack) for _, pack in learnt}) == 7
