"""Philox against published vectors and an implementation of others; FP16 rounding against float64 and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecraft.numerics.fp16 import nearest, stochastic
from stagecraft.numerics.philox import philox4x32, random_words

F = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
# Random123 1.09 (D. E. Shaw Research), tests/kat_vectors, lines `philox4x32`: rounds, counter, key, result.
PUBLISHED = [
    (7, (0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    (7, (F, F, F, F), (F, F), (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (7, *PI, (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)),
    (10, (0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (10, (F, F, F, F), (F, F), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (10, *PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]
word = st.integers(0, F)


@pytest.mark.parametrize(("rounds", "counter", "key", "result"), PUBLISHED)
def test_published_vectors(rounds, counter, key, result):
    assert tuple(philox4x32(torch.tensor(counter), key, rounds).tolist()) == result


def in_whole_numbers(counter, key, rounds):
    """The definition in Python's unbounded integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(rounds):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q // 2**32) ^ b ^ k, q % 2**32, (p // 2**32) ^ d ^ m, p % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return a, b, c, d


@settings(deadline=None)
@given(st.lists(st.tuples(word, word, word, word), min_size=1, max_size=4), st.tuples(word, word), st.sampled_from([1, 5, 7, 10]))
def test_philox_is_its_definition(counters, key, rounds):
    found = philox4x32(torch.tensor(counters), key, rounds)
    assert [tuple(row) for row in found.tolist()] == [in_whole_numbers(counter, key, rounds) for counter in counters]


def test_words_are_uniform_and_unlike_with_five_rounds():
    """For unrelated seeds. Of two that differ in one high bit, five rounds leave a correlation of 0.02; ten do not."""
    offset = torch.arange(1 << 17)
    first, second = (random_words(offset, seed, 5) for seed in (3, 0x9E3779B97F4A7C15))
    assert (random_words(offset.flip(0), 3, 5).flip(0) == first).all()
    counts = torch.histc(first.double(), 256, 0, 2**32)
    assert abs(((counts - 512) ** 2 / 512).sum() - 255) < 5 * math.sqrt(2 * 255)
    assert abs(torch.corrcoef(torch.stack([first.double(), second.double()]))[0, 1]) * math.sqrt(len(offset)) < 4.5
    assert abs(torch.corrcoef(torch.stack([first[1:].double(), first[:-1].double()]))[0, 1]) * math.sqrt(len(offset)) < 4.5


FLOATS = st.floats(width=32, allow_nan=False, min_value=-65504, max_value=65504)


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=20), word)
def test_either_neighbour_and_no_other(values, bits):
    x = torch.tensor(values, dtype=torch.float32)
    low, high = (stochastic(x, torch.full_like(x, fill, dtype=torch.int64)) for fill in (0, F))
    found = stochastic(x, torch.full_like(x, bits, dtype=torch.int64))
    closest = x.numpy().astype(np.float16)
    toward_zero = np.where(np.abs(closest.astype(np.float64)) > x.abs().double().numpy(), np.nextafter(closest, np.float16(0)), closest)
    assert (low.numpy() == toward_zero).all()
    away = np.nextafter(toward_zero, np.copysign(np.float16(np.inf), x.numpy().astype(np.float16)))
    assert ((high.numpy() == away) | (high.numpy() == toward_zero)).all()
    assert ((found == low) | (found == high)).all()
    assert (nearest(x).numpy() == closest).all()


@settings(deadline=None)
@given(st.integers(0, 2**16 - 1), word)
def test_fp16_numbers_stay(code, bits):
    x = torch.from_numpy(np.array([code], np.uint16).view(np.float16)).float()
    assert torch.equal(stochastic(x, torch.tensor([bits])).float().nan_to_num(7.0), x.nan_to_num(7.0))


@pytest.mark.parametrize("value", [1.0003, -1.0003, 0.1, 1e-3, 3.14159, 6.0e-5, 2.0e-7, 1.0e-8, 1000.3, -65503.0])
def test_mean_is_the_value(value):
    count = 1 << 16
    x = torch.full((count,), value, dtype=torch.float32)
    drawn = stochastic(x, random_words(torch.arange(count), 11, 5)).double()
    low, high = drawn.min(), drawn.max()
    share = (x[0].double() - low) / (high - low)
    z = (drawn.mean() - x[0].double()) / ((high - low) * (share * (1 - share) / count).sqrt())
    assert low < x[0].double() < high
    assert abs(z) < 4
    assert len(drawn.unique()) == 2


def test_a_sum_of_small_steps_survives_only_stochastic_rounding():
    """Why it matters: 1 + 1000 steps of 2^-12 stays 1 when each is rounded to nearest."""
    down = up = torch.ones(512)
    for step in range(1000):
        down = nearest(down + 2.0**-12).float()
        up = stochastic(up + 2.0**-12, random_words(torch.arange(512), step, 5)).float()
    assert (down == 1).all()
    assert up.mean() == pytest.approx(1 + 1000 * 2.0**-12, rel=2e-3)
