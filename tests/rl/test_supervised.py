"""What is trained beside the policy: it leaves the policy's curve alone, goes on from its own checkpoints, and skips what is not finite."""

import math

import pytest
import torch

from components.rl.supervised import train_on, training
from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog
from stagecraft.engine.trainer import Optimization, Trainer
from tests.architectures import tiny
from tests.groups import one_group  # noqa: F401
from tests.rl.test_prompts import PARAMS

STEPS = 5


def new_trainer(**options):
    torch.manual_seed(0)
    return Trainer(tiny(), Optimization(lr=1e-3, steps=STEPS, decay_steps=STEPS), max_sequence_length=64, expert_bias_rate=0.0,
                   aux_loss=0.0, **options)


def sequences():
    torch.manual_seed(1)
    return [(torch.randint(0, 200, (length,)).tolist(), [0] * 4 + [1] * (length - 4)) for length in (20, 30, 25, 10)]


def test_the_policys_curve_stays_and_a_training_that_was_whole_is_not_begun_anew(tmp_path):
    log = RunLog("rl", tmp_path / "plots", tmp_path)
    log.step(9, reward=1.0)  # of the policy, which has done more steps
    log.step(9, "reward_model", loss=1.0)  # of a start that came further than its checkpoints
    train_on(trainer := new_trainer(), sequences(), PARAMS, "reward_model", tmp_path, log)
    assert [row["step"] for row in log.curve()] == [9] and not log.curve("speed")
    rows = log.curve("reward_model")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5] and rows[-1]["loss"] < rows[0]["loss"]
    assert [path.name for path in (training(tmp_path, "reward_model") / "checkpoints").iterdir()] == ["step-00000005"]
    train_on(again := new_trainer(), sequences(), PARAMS, "reward_model", tmp_path, log)
    assert log.curve("reward_model") == rows and again.steps_done == STEPS
    assert all(torch.equal(tensor, again.weights()[name]) for name, tensor in trainer.weights().items())


def test_what_heals_an_mtp_block_shows_the_blocks_loss(tmp_path):
    log = RunLog("rl", tmp_path / "plots", tmp_path)
    train_on(new_trainer(frozen=("embedding.", "decoder.", "output_layer."), mtp_depths=2), sequences(), PARAMS, "healing", tmp_path, log)
    assert all(row["loss"] == pytest.approx((row["mtp_loss_1"] + row["mtp_loss_2"]) / 2) for row in log.curve("healing"))


def test_steps_without_a_finite_loss_are_no_points_of_the_curve_and_too_many_end_the_run(tmp_path):
    log = RunLog("rl", tmp_path / "plots", tmp_path)
    trainer = new_trainer()
    next(trainer.module.parameters()).data.fill_(math.nan)
    with pytest.raises(UserError, match=r"^reward model: loss nan .* at step 4, after 3 steps in a row"):
        train_on(trainer, sequences(), PARAMS, "reward_model", tmp_path, log)
    assert not log.curve("reward_model")
