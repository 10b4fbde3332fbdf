"""Healing trains the MTP block and nothing else; accepted drafts are counted as vLLM counts them."""

import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from components.rl import healing
from components.rl import train as policy
from components.rl.acceptance import acceptance, accepted_length, agreements
from components.rl.generator import Job
from components.rl.healing import FROZEN
from components.rl.supervised import training
from stagecraft.checkpoint.canonical import read_checkpoint
from stagecraft.contract.runlog import RunLog
from stagecraft.engine import checkpoints, parallel
from stagecraft.engine.collectives import FirstRank
from stagecraft.engine.packs import packed_batch
from stagecraft.engine.trainer import Optimization, Trainer
from stagecraft.inference.engine import Engine
from tests.architectures import tiny
from tests.groups import one_group  # noqa: F401
from tests.inference.conftest import draw_prompts
from tests.inference.foresight import OUTWARD, foreseeing_checkpoint
from tests.rl.test_prompts import PARAMS


def test_accepted_length_by_hand():
    right, wrong = [True, True], [False, True]
    assert accepted_length([torch.tensor([right, right, right, right, right, right])]) == 3
    assert accepted_length([torch.tensor([wrong, wrong, wrong])]) == 1
    assert accepted_length([torch.tensor([right, wrong, wrong, [True, False], wrong])]) == statistics.fmean([3, 2])
    assert accepted_length([torch.zeros(0, 2, dtype=torch.bool)]) == 1  # a first token and no more


@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=12), min_size=1, max_size=4))
def test_accepted_length_against_a_server_token_by_token(answers):
    """A server that goes on until the answer is there, one step a verification."""
    steps = said = 0
    for answer in answers:
        known = 1
        while known < len(answer) + 1:
            drafts, taken = answer[known - 1], 0
            while taken < 3 and drafts[taken]:
                taken += 1
            known, steps, said = known + taken + 1, steps + 1, said + taken + 1
    expected = said / steps if steps else 1.0
    assert accepted_length([torch.tensor(answer, dtype=torch.bool).view(-1, 3) for answer in answers]) == pytest.approx(expected)


def test_drafts_are_accepted_as_often_as_the_trainer_says(tmp_path):
    """vLLM's own counters, of greedy answers with one draft: every verification and every accepted draft."""
    model = foreseeing_checkpoint(tmp_path / "model")
    weights, generator = load_file(model / "model.safetensors"), torch.Generator().manual_seed(1)
    for name, weight in weights.items():
        if name.startswith("mtp.") and name.endswith(OUTWARD):  # so that the block's attention and experts matter too
            weight += 0.005 * torch.randn(weight.shape, generator=generator)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    prompts = [prompt for prompt in draw_prompts(30, seed=3) if len(prompt) > 1]
    with Engine(model, max_model_len=96, max_num_seqs=32, draft_tokens=1) as engine:
        answers = [(prompt, answer.token_ids) for prompt, (answer,) in zip(prompts, engine.generate(prompts, temperature=0, max_tokens=20))]
        verifications, _, (accepted,) = engine.draft_statistics()
    architecture, weights = read_checkpoint(model)
    trainer = Trainer(architecture, Optimization(lr=1e-3, steps=1), max_sequence_length=256, weights=weights, mtp_depths=1)
    found = acceptance(trainer, answers, 256)
    assert 0.1 * verifications < accepted < 0.9 * verifications
    assert found.length == pytest.approx(1 + accepted / verifications, rel=1e-9)
    agreed = agreements(trainer, answers, 256)
    assert found.agreement == [pytest.approx(torch.cat(agreed).double().mean().item())]


def test_what_is_not_the_block_keeps_every_bit():
    torch.manual_seed(0)
    trainer = Trainer(tiny(), Optimization(lr=1e-2, steps=2), max_sequence_length=64, frozen=FROZEN, expert_bias_rate=0.0, aux_loss=0.0,
                      mtp_depths=2, mtp_loss_scale=1.0)
    before = {name: tensor.clone() for name, tensor in trainer.weights().items()}
    ids = torch.randint(0, 200, (30,)).tolist()
    losses = [trainer.step([packed_batch([(ids, [0] * 5 + [1] * 25)])]).mtp_losses for _ in range(2)]
    moved = {name for name, tensor in trainer.weights().items() if not torch.equal(tensor, before[name])}
    block = {name for name in before if name.startswith("mtp.")}
    assert moved <= block and len(moved) > 0.6 * len(block)
    assert all(after < first for first, after in zip(*losses))


def _damaged_after(directory, trainer, steps):
    """Checkpoints of `trainer` after `steps` steps, and one after it that is damaged."""
    for _ in range(steps):
        trainer.pass_over()
    checkpoints.save(directory, trainer)
    (directory / f"step-{steps + 1:08d}").mkdir()


def test_a_damaged_checkpoint_is_told_of(tmp_path, monkeypatch):
    for name in ("last_rollouts", "read_answers", "acceptance"):
        monkeypatch.setattr(healing, name, lambda *_: [])
    params = replace(PARAMS, steps=1, dtype="float32", healing=replace(PARAMS.healing, steps=1, depths=1))
    optimization = Optimization(lr=1e-3, steps=1, decay_steps=1)
    kinds = {"max_sequence_length": 64, "expert_bias_rate": 0.0, "aux_loss": 0.0}
    _damaged_after(tmp_path / "checkpoints", Trainer(tiny(), optimization, frozen=policy.FROZEN, **kinds), 1)
    whole = Trainer(tiny(), optimization, frozen=FROZEN, mtp_depths=1, **kinds)
    _damaged_after(training(tmp_path, "healing") / "checkpoints", whole, 1)
    told = []
    log = RunLog("rl", tmp_path, tmp_path)
    monkeypatch.setattr(log, "note", told.append)
    log.step(1, "healing", loss=0.0)  # of the start that left the checkpoint
    job = Job(params, tmp_path, tmp_path, None, tmp_path, ())
    weights = whole.weights()
    policy.train(params, tiny(), weights, job, tmp_path, 0, FirstRank(), log)
    parallel.initialize(seed=0)
    healing.heal(params, tiny(), weights, weights, tmp_path, tmp_path, tmp_path, log)
    parallel.initialize(seed=0)
    assert len(told) == 2 and all("step-00000002 is damaged" in note for note in told)
