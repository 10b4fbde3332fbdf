"""What a step of fine-tuning descends: a mean over tokens, or over conversations of each one's mean; packed or alone, one gradient."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from components.sft.params import Params
from components.sft.train import Packs
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import load, parse, read_profile
from stagecraft.engine.packs import packed_batch
from stagecraft.engine.trainer import Optimization, Trainer
from tests.architectures import tiny
from tests.groups import one_group  # noqa: F401

PROFILE = Path(__file__).parents[2] / "params.yaml"
PARAMS = replace(load(Params, "sft", PROFILE), pack_tokens=512)
STAGES = {mean: replace(PARAMS.stages[0], loss_mean=mean) for mean in ("tokens", "conversations")}


def step(trainer, batches):
    """(loss reported, gradients) of one step that changes nothing: its rate is 0."""
    result = trainer.step(batches)
    return result.loss, {name: p.main_grad.clone() for name, p in trainer.module.named_parameters()}


@settings(max_examples=5, deadline=None, phases=[Phase.generate])
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 25)), min_size=2, max_size=6), st.integers(0, 999),
       st.sampled_from(list(STAGES)))
def test_a_packed_step_is_the_mean_of_conversations_alone(lengths, seed, mean):
    torch.manual_seed(seed)
    trainer = Trainer(tiny(), Optimization(lr=1e-12, steps=1, clip=1e9), max_sequence_length=512, aux_loss=0.0, expert_bias_rate=0.0)
    held = [(torch.randint(0, 256, (silent + spoken,)).tolist(), [0] * silent + [1] * spoken) for silent, spoken in lengths]
    packs = Packs(held, STAGES[mean], 0)
    half = len(held) // 2 or 1
    found = step(trainer, [packs.batch(list(indices)) for indices in (range(half), range(half, len(held))) if indices])
    shares = [1 / len(held) if mean == "conversations" else spoken / sum(s for _, s in lengths) for _, spoken in lengths]
    loss, gradients = 0.0, {name: torch.zeros_like(each, dtype=torch.float64) for name, each in found[1].items()}
    for share, conversation in zip(shares, held):
        alone, gradient = step(trainer, [packed_batch([conversation])])
        loss += share * alone
        for name, each in gradient.items():
            gradients[name] += share * each.double()
    assert found[0] == pytest.approx(loss, rel=1e-5)
    for name, each in found[1].items():
        assert (each.double() - gradients[name]).norm() <= 1e-5 * gradients[name].norm(), name


def test_every_epoch_is_a_shuffle_of_its_own():
    held = [([0] * 9, [0] + [1] * 8)] * 42  # four to a pack, eight to a step, two of every epoch are left over
    stage = replace(STAGES["tokens"], pack_tokens=32, packs_per_step=2)

    def drawn(seed):
        packs = Packs(held, stage, seed)
        assert packs[9] and packs.epochs == 2
        return [[index for at in epoch for pack in packs[at] for index in pack] for epoch in (range(5), range(5, 10))]

    first, second = drawn(3)
    assert len(first) == len(set(first)) == len(second) == len(set(second)) == 40
    assert first != second and first != sorted(first)
    assert drawn(3) == [first, second] != drawn(4)


def test_long_answers_stop_dominating():
    """A token of a short answer weighs as much as ten of an answer ten times as long, in the second stage alone."""
    held = [([1] * 12, [0] * 2 + [1] * 10), ([2] * 3, [0] * 2 + [1])]
    first, second = (Packs(held, stage, 0).batch([0, 1]).loss_mask[0].tolist() for stage in STAGES.values())
    assert first == [0, *[1] * 10, 0, 1]
    assert second == pytest.approx([0, *[0.1] * 10, 0, 1])


def test_impossible_parameters_are_one_line():
    section = read_profile(PROFILE)["sft"]
    later = {"steps": 10, "loss_mean": "conversations", **{key: section[key] for key in ("pack_tokens", "packs_per_step", "modes")}}
    for changes, message in (({"modes": {"off": 0.5, "low": 0.5, "cut": 0.5}}, "off . low . cut is 1.5, more than 1"),
                             ({"later_stages": [{**later, "steps": 260}]}, "later_stages have 260 of the 260 steps, and leave none"),
                             ({"later_stages": [{**later, "packs_per_step": 3}]}, "packs_per_step 3 is no multiple of the 2 "),
                             ({"warmup_steps": 171}, r"warmup_steps \+ decay_steps = 261 is more than steps 260"),
                             ({"min_lr": 2.1e-3}, "min_lr 0.0021 is above lr 0.002"), ({"optimizer": "sgd"}, "optimizer 'sgd' is unknown"),
                             ({"data": {"tasks": True, "files": [], "bad_rows": "ignore"}}, "'fail' or 'skip'")):
        with pytest.raises(UserError, match=message):
            parse(Params, {**section, **changes}, "sft")
    parse(Params, {**section, "warmup_steps": 170, "min_lr": section["lr"], "modes": {"off": 0.33, "low": 0.56, "cut": 0.11}}, "sft")
