"""GRPO's formulas against arithmetic by hand and a reference in float64."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.rl.advantage import group_advantages
from components.rl.loss import PolicyLoss, Rollout
from stagecraft.engine import parallel
from stagecraft.engine.packs import packed_batch


@pytest.fixture(scope="module", autouse=True)
def process_group():
    parallel.initialize(seed=0)
    yield
    parallel.shutdown()


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


def reference(logits, batch, rollout, loss):
    """Token by token in float64."""
    total, bounds = 0.0, batch.packed.cu_seqlens_q.tolist()
    for start, end in pairwise(bounds):
        spoken = [t for t in range(start, end) if batch.loss_mask[0, t]]
        own = {t: (logits[0, t].double() / loss.temperature).log_softmax(-1)[batch.labels[0, t]].item() for t in spoken}
        if abs(sum(own[t] - rollout.generator_logprobs[t].item() for t in spoken)) > loss.mismatch_limit:
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
    total.backward()
    weight = torch.exp(-shift).clamp(max=1.05) * rollout.advantages
    weight[[0, 4, 5]] = 0
    policy = (logits.detach()[0] / 0.8).softmax(-1)
    expected = -(torch.nn.functional.one_hot(batch.labels[0], 10) - policy) * weight[:, None] / 0.8
    torch.testing.assert_close(logits.grad[0], expected, atol=1e-6, rtol=1e-4)
