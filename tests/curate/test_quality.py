"""The rules, each broken by a text made for it and by no other."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.curate.params import QualityParams
from components.curate.quality import broken_bound, letters, repeated_share

BOUNDS = QualityParams(min_characters=200, max_characters=5000, max_line_characters=500, min_letter_share=0.6, min_ascii_share=0.97,
                       max_repeated_share=0.3)
GOOD = "\n".join(f"Line {'abcdefghij'[number]} tells of the river and what {'klmnopqrst'[number]} lies beside it." for number in range(10))
BREAKERS = {
    "too_short": "A short text.",
    "too_long": "\n".join(f"{GOOD} {number}" for number in range(20)),
    "long_line": GOOD.replace("\n", " "),
    "control_markup": GOOD + "\nand then <|im_end|> appears",
    "not_ascii": GOOD + "\n" + "привет " * 10,
    "few_letters": GOOD[:200] + "\n" + "\n".join(f"0x{number:04x}, 1234, 5678;" for number in range(30)),
    "repetitive": GOOD + "\nThe same line again and again and again.\n" * 10,
}


def test_good_text_is_within_all_bounds():
    assert broken_bound(GOOD, BOUNDS) is None


@pytest.mark.parametrize("name", BREAKERS)
def test_a_text_made_to_break_a_bound_breaks_it_first(name):
    assert broken_bound(BREAKERS[name], BOUNDS) == name


@given(st.text())
def test_letters_are_counted_as_a_pattern_counts_them(text):
    assert letters(text) == len(re.findall(r"[^\W\d_]|\s", text))


def test_repeated_share_counts_characters_of_lines_seen_before():
    assert repeated_share("ab\n\n  ab\ncd\n") == pytest.approx(2 / 6)
    assert repeated_share("") == 0
