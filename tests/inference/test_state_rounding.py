"""Rounded Mamba states in the engine against transformers' cache with the same rounding."""

from __future__ import annotations

import torch

from benchmarks.ssm_state import change, compare, decode
from benchmarks.state_rounding import StateRounding, rounded_states
from tests.inference.conftest import draw_prompts

PROMPTS = draw_prompts(6, seed=9)
NEW = 24


def answers(engine, rounding):
    """Greedy from one token on, so that all but the first is decoded: (tokens, log-probabilities), [prompts, NEW]."""
    with rounded_states(rounding):
        groups = engine.generate([prompt[:1] for prompt in PROMPTS], temperature=0, max_tokens=NEW, logprobs=True)
    return [torch.tensor([getattr(group[0], name) for group in groups]) for name in ("token_ids", "logprobs")]


def decoded(transformer, tokens, roundings):
    """Log-probabilities [roundings, prompts, NEW] of `tokens` behind each prompt's first, fed one by one."""
    fed = torch.cat([torch.tensor([prompt[:1] for prompt in PROMPTS]), tokens], 1)
    table = torch.stack([logprobs for logprobs, _ in decode(transformer, fed[:, :-1], roundings)], 2)
    return table.gather(-1, fed[None, :, 1:, None].expand(len(roundings), -1, -1, 1))[..., 0]


def test_engine_rounds_as_a_cache_of_16_bits_would(engine, transformer):
    """Sums in another order tip a few roundings over, hence nearly all."""
    tokens, logprobs = answers(engine, StateRounding("nearest"))
    rounded, exact = decoded(transformer, tokens, [StateRounding("nearest"), StateRounding("none")])
    assert (logprobs - exact).abs().mean() > 10 * (logprobs - rounded).abs().mean()
    assert ((logprobs - rounded).abs() < 1e-3).float().mean() > 0.9


def test_nothing_is_left_behind_and_seeds_decide(engine, transformer):
    tokens, logprobs = answers(engine, StateRounding("none"))
    (exact,) = decoded(transformer, tokens, [StateRounding("none")])
    assert torch.allclose(logprobs, exact, atol=1e-4)
    first, again, other = (answers(engine, StateRounding("stochastic", seed=seed))[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(answers(engine, StateRounding("none"))[1], logprobs)


def test_states_are_fp16_numbers_and_the_first_row_is_the_reference(transformer):
    texts = torch.tensor([prompt[:12] for prompt in draw_prompts(40, seed=4) if len(prompt) >= 12][:3])
    roundings = [StateRounding("none"), StateRounding("nearest"), StateRounding("none"), StateRounding("stochastic")]
    steps = list(decode(transformer, texts, roundings))
    for _, states in steps:
        for state in states:
            assert torch.equal(state[[1, 3]], state[[1, 3]].half().float())
            assert not torch.equal(state[0], state[0].half().float())
    full = transformer(texts).logits.log_softmax(-1)
    assert torch.allclose(torch.stack([logprobs[0] for logprobs, _ in steps], 1), full, atol=1e-4)
    last = list(compare(iter(steps)))[-1]
    assert last.kl.shape == last.error.shape == (3, 3)
    assert (last.error[1] < 1e-6).all()
    assert ((last.error[[0, 2]] > 1e-5) & (last.error[[0, 2]] < 1e-2)).all()


def test_change_of_length_has_an_interval():
    before = torch.tensor([10.0, 20.0, 30.0, 40.0])
    assert change(2 * before, before) == "+100.00% (+100.00% to +100.00%)"
    # By hand: residuals 2, -2, 3, -3 have s = 2.944; 2.944 / 25 / sqrt(4) = 0.0589; t(0.975, 3) = 3.182.
    assert change(torch.tensor([12.0, 18.0, 33.0, 37.0]), before) == "+0.00% (-18.74% to +18.74%)"
