"""Windows score every token once; bits are those of a model that can be computed by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.evaluate.text import Window, bits, clip, windows


@given(st.lists(st.integers(3, 99), max_size=80), st.integers(2, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))))
def test_every_token_is_scored_once_and_in_its_true_context(tokens, size):
    length, overlap = size
    cut = windows(tokens, 2, length, overlap)
    assert [token for window in cut for token in window.tokens[window.scored:]] == tokens
    stream = [2, *tokens]
    position = 1
    for index, window in enumerate(cut):
        assert 2 <= len(window.tokens) <= length
        begin = position - window.scored
        assert window.tokens == stream[begin:begin + len(window.tokens)]
        assert window.scored == (1 if index == 0 else min(overlap, position))
        position += len(window.tokens) - window.scored


def test_a_uniform_model_needs_log2_of_the_vocabulary_per_scored_token():
    uniform = -math.log(1024)
    cut = windows(list(range(3, 33)), 2, 16, 4)
    assert sum(bits(window, [uniform] * (len(window.tokens) - 1)) for window in cut) == pytest.approx(30 * 10)


def test_context_is_not_scored():
    assert bits(Window([5, 6, 7, 8], 3), [-100.0, -100.0, -math.log(4)]) == pytest.approx(2.0)


@given(st.text(max_size=30), st.integers(0, 60))
def test_clipping_never_splits_a_character(text, limit):
    clipped, whole = clip(text, limit)
    assert text.startswith(clipped)
    assert whole == (len(text.encode()) <= limit)
    assert clipped == text if whole else limit - 4 < len(clipped.encode()) <= limit
