"""GRPO's formulas against arithmetic by hand and a reference in float64."""

import math
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.rl.advantage import group_advantages
from components.rl.loss import PolicyLoss, Rollout, clipped_objective, importance_weight, trusted
from components.rl.params import Params
from components.rl.rollouts import Sample, batches, lessons, weigh
from components.rl.train import FROZEN
from stagecraft.contract.params import load
from stagecraft.engine.packs import packed_batch
from stagecraft.engine.trainer import Optimization, Trainer
from tests.architectures import tiny
from tests.groups import one_group  # noqa: F401


def test_advantages_by_hand():
    found = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    spread = math.sqrt((4 * 0.25) / 3)
    expected = [(1 - 1 / 3) / spread, (0 - 2 / 3) / spread, (0 - 2 / 3) / spread, (1 - 1 / 3) / spread]
    assert found[0].tolist() == pytest.approx(expected, rel=1e-4)
    assert found[1].tolist() == [0, 0, 0, 0]


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=9), st.floats(0.5, 3), st.floats(-2, 2))
def test_advantages_sum_to_zero_and_ignore_scale_and_offset(rewards, scale, offset):
    group = torch.tensor([rewards], dtype=torch.float64)
    found = group_advantages(group)
    assert abs(found.sum()) < 1e-4
    if group.std() > 1e-2:
        torch.testing.assert_close(group_advantages(group * scale + offset), found, rtol=1e-3, atol=1e-4)


@given(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=2, max_size=16))
def test_advantages_against_a_reference_sample_by_sample(rewards):
    found = group_advantages(torch.tensor([rewards], dtype=torch.float64))[0].tolist()
    spread = statistics.stdev(rewards)
    for at, (reward, advantage) in enumerate(zip(rewards, found)):
        others = rewards[:at] + rewards[at + 1:]
        assert advantage == pytest.approx((reward - statistics.fmean(others)) / spread if spread else 0.0, rel=1e-4)


@given(st.floats(0.1, 3), st.floats(-2, 2))
def test_the_clipped_objective_and_where_its_gradient_ends(ratio, advantage):
    given_ratio = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    found = clipped_objective(given_ratio, torch.tensor(advantage, dtype=torch.float64), 0.2, 0.28)
    assert found.item() == min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
    found.backward()
    clipped = (advantage > 0 and ratio > 1.28) or (advantage < 0 and ratio < 0.8)
    if abs(ratio - 1.28) > 1e-6 and abs(ratio - 0.8) > 1e-6:
        assert given_ratio.grad.item() == (0 if clipped else pytest.approx(advantage))


def test_importance_is_truncated_at_five():
    trainer, generator = (torch.tensor(values, dtype=torch.float64) for values in ([-1.0, -1.0, -3.0], [-1.0, -4.0, -1.0]))
    assert importance_weight(trainer, generator, 5.0).tolist() == pytest.approx([1.0, 5.0, math.exp(-2)])


def test_a_completion_is_trusted_by_the_mean_factor_between_the_two():
    """Log-probabilities that differ up and down do not cancel; one bad token is borne by many good ones."""
    difference = torch.log(torch.tensor([3.0, 1 / 3, 1.0, 1.0, 1.0, 8.0, 1.99], dtype=torch.float64))
    sequence = torch.tensor([0, 0, 1, 1, 1, 1, 2])
    assert trusted(difference, torch.zeros(7, dtype=torch.float64), sequence, 4, 2.0).tolist() == [False, False, True, True]
    assert trusted(difference, torch.zeros(7, dtype=torch.float64), sequence, 4, 2.75).tolist() == [False, True, True, True]


def sample(reward, finished=True, malformed=False):
    return Sample("a", "sort", "", [1], 0, tokens=[2], mask=[1], logprobs=[0.0], finished=finished, malformed=malformed, reward=reward)


def test_penalty_and_overlong_filter():
    params = replace(load(Params, "rl", Path(__file__).parents[2] / "params.yaml"), generations_per_prompt=4)

    def advantages(**changes):
        group = [sample(1), sample(0, malformed=True), sample(0, finished=False), sample(1)]
        weigh(group, replace(params, **changes))
        return [each.advantage for each in group]

    plain = group_advantages(torch.tensor([[1.0, 0, 0, 1]]))[0].tolist()
    assert advantages(malformed_penalty=0.0, overlong_filter=False) == plain
    assert advantages(malformed_penalty=5.0, overlong_filter=False) == [plain[0], -5.0, *plain[2:]]
    assert advantages(malformed_penalty=0.0, overlong_filter=True) == [*plain[:2], 0.0, plain[3]]
    alike = [sample(0, malformed=True), *(sample(0) for _ in range(3))]
    weigh(alike, replace(params, malformed_penalty=5.0))
    assert [each.advantage for each in alike] == [-5.0, 0, 0, 0]  # a group that agrees still teaches this


def reference(logits, batch, rollout, loss):
    """Token by token in float64."""
    total, bounds = 0.0, batch.packed.cu_seqlens_q.tolist()
    for start, end in pairwise(bounds):
        spoken = [t for t in range(start, end) if batch.loss_mask[0, t]]
        own = {t: (logits[0, t].double() / loss.temperature).log_softmax(-1)[batch.labels[0, t]].item() for t in spoken}
        if sum(math.exp(abs(own[t] - rollout.generator_logprobs[t].item())) for t in spoken) / len(spoken) > loss.mismatch_limit:
            continue
        total -= sum(min(math.exp(own[t] - rollout.generator_logprobs[t].item()), loss.importance_limit) * rollout.advantages[t].item()
                     for t in spoken)
    return total


def test_loss_and_its_gradient_against_the_reference():
    torch.manual_seed(0)
    batch = packed_batch([([1, 2, 3, 4, 5], [0, 0, 1, 1, 1]), ([6, 7, 8], [0, 1, 1]), ([1, 3], [0, 1])])
    places = batch.tokens.shape[1]
    logits = torch.randn(1, places, 10, requires_grad=True)
    exact = (logits[0] / 0.8).log_softmax(-1).gather(1, batch.labels[0, :, None])[:, 0].detach()
    shift = torch.tensor([0.0, 0.1, -0.1, 0.3, 0.0, -2.5, 0.2])  # the second sequence differs by more than the limit
    rollout = Rollout(exact + shift, torch.tensor([0.0, 1.0, 1.0, 1.0, -1.0, -1.0, 0.5]))
    batch.extra = rollout
    loss = PolicyLoss(temperature=0.8, ratio_clip_low=0.2, ratio_clip_high=0.28, importance_limit=1.05, mismatch_limit=2.0)
    total, tokens, figures = loss(logits, batch)
    assert total.item() == pytest.approx(reference(logits, batch, rollout, loss), rel=1e-5)
    assert tokens == 4 and figures["masked"] == 2
    spread = torch.distributions.Categorical(logits=(logits[0].detach() / loss.temperature).double()).entropy()
    assert figures["entropy"].item() == pytest.approx(spread[batch.loss_mask[0] > 0].sum().item(), rel=1e-6)
    total.backward()
    weight = torch.exp(-shift).clamp(max=1.05) * rollout.advantages
    weight[[0, 4, 5]] = 0
    policy = (logits.detach()[0] / 0.8).softmax(-1)
    expected = -(torch.nn.functional.one_hot(batch.labels[0], 10) - policy) * weight[:, None] / 0.8
    torch.testing.assert_close(logits.grad[0], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kl, filtered, rows", [(0.0, False, [0, 1]), (0.3, False, [0, 1, 2, 3]), (0.3, True, [0, 2, 3])])
def test_the_kl_of_a_step_is_that_of_all_its_completions(kl, filtered, rows):
    """Those of a group that agrees have no advantage, but a distance; those that the overlong filter leaves out have neither."""
    torch.manual_seed(1)
    plain = load(Params, "rl", Path(__file__).parents[2] / "params.yaml")
    params = replace(plain, generations_per_prompt=2, kl=kl, overlong_filter=filtered)
    samples = [Sample(str(at), "sort", "", [1, 2], 0, tokens=[3 + at, 8, 9][:2 + at % 2], mask=[1, 1, 1][:2 + at % 2],
                      logprobs=[-2.0, -2.5, -1.5][:2 + at % 2], finished=at != 1, reward=float(at == 0)) for at in range(4)]
    weigh(samples, params)
    (batch,) = batches(lessons(samples, params), params)
    places = batch.tokens.shape[1]
    logits, batch.extra.reference_logprobs = torch.randn(1, places, 12), torch.randn(places) - 2
    loss = PolicyLoss(params.temperature, 0.2, 0.28, params.importance_limit, 1e9, kl)
    total, tokens, figures = loss(logits, batch)
    spoken = [t for t in range(places) if batch.loss_mask[0, t]]
    own = {t: (logits[0, t].double() / params.temperature).log_softmax(-1)[batch.labels[0, t]].item() for t in spoken}
    distance = {t: batch.extra.reference_logprobs[t].item() - own[t] for t in spoken}
    drift = sum(math.exp(each) - each - 1 for each in distance.values())
    exact = sum(min(math.exp(own[t] - batch.extra.generator_logprobs[t].item()), params.importance_limit)
                * batch.extra.advantages[t].item() for t in spoken)
    assert tokens == sum(len(samples[row].tokens) for row in rows) and figures["kl"].item() == pytest.approx(drift, rel=1e-5)
    assert total.item() == pytest.approx(kl * drift - exact, rel=1e-5)


def test_the_router_keeps_its_values_and_the_rest_learns():
    torch.manual_seed(0)
    trainer = Trainer(tiny(), Optimization(lr=1e-2, steps=1), max_sequence_length=64, frozen=FROZEN, expert_bias_rate=0.0, aux_loss=0.0)
    before = {name: tensor.clone() for name, tensor in trainer.weights().items()}
    ids = torch.randint(0, 200, (20,)).tolist()
    batch = replace(packed_batch([(ids, [0] * 5 + [1] * 15)]), extra=Rollout(torch.full((19,), -5.0), torch.ones(19)))
    trainer.step([batch], PolicyLoss(1.0, 0.2, 0.28, 5.0, 1e9))
    moved = {name for name, tensor in trainer.weights().items() if not torch.equal(tensor, before[name])}
    routers = {name for name in before if "gate" in name}
    assert routers and not routers & moved
    assert len(moved) > 0.7 * (len(before) - len(routers))
