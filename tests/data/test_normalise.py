"""What normalising changes, and what it leaves alone."""

import re
import time

from hypothesis import given
from hypothesis import strategies as st

from stagecraft.data.normalise import _TRAILING, normalise


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(alphabet=" \t\nab\u00a0"))
def test_blanks_go_at_the_ends_of_lines_alone(text):
    assert _TRAILING.sub("", text) == re.sub(r"(?m)[ \t]+$", "", text)


def test_a_long_run_of_blanks_inside_a_line_is_no_burden():
    text = f"a{' ' * 200_000}b\n"
    began = time.perf_counter()
    assert normalise(text) == text
    assert time.perf_counter() - began < 20, "the square of the run: five minutes"


def test_what_normalising_does():
    assert normalise("\ufeffe\u0301 \r\nb\x00\t \r\rc\n\n\n\n\nd\n\n") == "é\nb\n\nc\n\n\nd\n"
