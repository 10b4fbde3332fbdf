"""Every document gets one of the sixteen categories: hand-labelled examples of each rule, and properties of any text."""

import inspect
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.curate.categories import CATEGORIES, CODE, blend_key, category, code_share, is_code
from stagecraft.contract.params import read_profile

EXAMPLES = settings(max_examples=100, deadline=None, derandomize=True)
MATH = """Theorem. The square root of 2 is irrational. Proof. Suppose a/b is a fraction in lowest terms with a² = 2b². Then a is even,
so a = 2c for an integer c. Substituting gives 2c² = b², so b is even too, and the fraction was not in lowest terms."""
PHYSICS = """The electron in a hydrogen atom has discrete energy levels. When it falls from a higher to a lower level, a photon
is emitted whose frequency is proportional to the energy lost. Measuring the wavelength of this radiation led to quantum theory."""
PAPER = """Sparse mixtures of experts were introduced for translation [3] and later scaled (Fedus et al., 2021). In this paper
we show that a smaller router suffices. Earlier work [4, 7] used an auxiliary loss.

References
[1] A. Author et al. A title. 2019."""
LICENCE = """Permission is hereby granted to any person to deal in the material without restriction. It is provided without warranty of
any kind, including merchantability. In no event shall the authors be liable for any claim. All rights reserved."""
NEWS = """The town council met on Tuesday to discuss the new swimming pool. Residents had asked for longer opening hours. The mayor
promised an answer before the summer and thanked everyone who had written to her."""
LOG = "\n".join(f"2024-03-{day} 10:11:{day} INFO worker[{day}] id={day} t={day}ms done" for day in range(10, 40))
PROGRAM = inspect.getsource(textwrap)
PAGE = f"This page shows how lines are wrapped.\n{NEWS}\n\n" + "\n".join(f"    step_{n} = run({n})" for n in range(3))


@pytest.mark.parametrize(("text", "metadata", "expected"), [
    (NEWS, {"category": "general-sft", "path": "a.py", "language": "de"}, "general-sft"),
    (NEWS, {"category": "recipes"}, "crawl-medium"),
    (NEWS, {"category": ["code"]}, "crawl-medium"),
    ("x", {"path": "src/main.rs"}, "code"),
    ("x", {"path": "rows/lib.py.gz:12", "language": "de"}, "code"),
    (PROGRAM.replace('"', ""), {"path": "wrap.py"}, "code"),
    ("int main() {\n  int a = 1;\n  a += 2;\n  return a;\n}\n", {}, "code"),
    ("int main() {\n  int a = 1;\n  a += 2;\n  return a;\n}\n", {"path": "readme.md"}, "nemotron-cc-code"),
    (PAGE, {}, "nemotron-cc-code"),
    (NEWS, {"language": "de"}, "multilingual"),
    (NEWS, {"language": "zh-Hans"}, "multilingual"),
    (NEWS, {"language": "en_GB"}, "crawl-medium"),
    (NEWS, {"language": "eng_Latn"}, "crawl-medium"),
    (NEWS, {"language": "und"}, "crawl-medium"),
    (NEWS, {"path": "reports/a.PDF"}, "finepdfs"),
    (NEWS, {"mime": "application/pdf"}, "finepdfs"),
    (NEWS, {"url": "https://example.org/report.pdf?page=2"}, "finepdfs"),
    (NEWS, {"url": "https://en.wikipedia.org/wiki/Town"}, "wiki"),
    (NEWS, {"url": "https://notwikipedia.org/wiki/Town"}, "crawl-medium"),
    (NEWS, {"url": "http://[broken"}, "crawl-medium"),
    (NEWS + "\nFrom Wikipedia, the free encyclopedia", {}, "wiki"),
    (NEWS, {"url": "https://old.reddit.com/r/towns"}, "crawl-plus-plus"),
    (NEWS, {"source": "OpenWebText"}, "crawl-plus-plus"),
    (NEWS, {"url": "https://arxiv.org/abs/1234"}, "academic"),
    (NEWS, {"path": "paper.tex"}, "academic"),
    (PAPER, {}, "academic"),
    (PHYSICS, {}, "academic"),
    (MATH, {}, "math"),
    ("Question: " + MATH + "\nAnswer: it is irrational.", {}, "stem-sft"),
    ("Question: " + PHYSICS + "\nAnswer: the wavelength.", {}, "stem-sft"),
    ("User: Where did the council meet?\nAssistant: In the town hall, as it always does on Tuesdays.", {}, "general-sft"),
    ("Problem: add one to every item.\nSolution:\ndef add(items):\n    return [\n        x + 1 for x in items\n    ]", {}, "code-sft"),
    (" \n" * 10_000 + MATH + "\n" * 10_000, {}, "math"),
    ("Two prime numbers.", {}, "crawl-medium"),
    (LICENCE, {}, "crawl-medium"),
    (NEWS, {}, "crawl-medium"),
    (NEWS, {"synthetic": True}, "syn-crawl-medium"),
    (LOG, {}, "crawl-medium"),
    ("", {}, "crawl-medium"),
])
def test_hand_labelled(text, metadata, expected):
    assert category(text, metadata) == expected


@EXAMPLES
@given(st.text(max_size=300) | st.sampled_from([MATH, PAPER, PROGRAM, PAGE, LOG]), st.dictionaries(
    st.sampled_from(["category", "path", "source", "url", "mime", "language", "synthetic"]),
    st.none() | st.text(max_size=20) | st.sampled_from([*CATEGORIES, "https://arxiv.org/x", "a.md", "b.py:3", "en", "fr"])),
    st.text(" \n\t\r", max_size=9), st.text(" \n\t\r", max_size=9))
def test_always_one_of_the_sixteen_whatever_surrounds_the_text(text, metadata, before, after):
    found = category(text, metadata)
    assert found in CATEGORIES
    assert category(before + text + after, metadata) == found
    given = metadata.get("category")
    assert given not in CATEGORIES or found == given
    assert found == CODE or not is_code(metadata)
    for tier in range(1, 6):
        assert blend_key(found, tier) in CATEGORIES
        assert category(text, metadata, tier) == (found if given in CATEGORIES else blend_key(found, tier))


def test_code_is_known_before_the_text_is_looked_at():
    assert is_code({"path": "a/b.py.gz:3"}) and is_code({"path": "a.txt", "category": "code"})
    assert not is_code({"path": "a.txt"}) and not is_code({}) and not is_code({"path": "a.py", "category": "math"})


def test_blend_keys_carry_the_tier_of_crawl_only():
    assert [blend_key("crawl-medium", tier) for tier in range(1, 6)] == ["crawl-medium"] * 3 + ["crawl-medium-high", "crawl-high"]
    assert [blend_key("syn-crawl-medium", tier) for tier in range(1, 6)] == ["syn-crawl-medium"] * 4 + ["syn-crawl-high"]
    others = [name for name in CATEGORIES if "crawl-medium" not in name and "crawl-high" not in name]
    assert len(others) == 11
    for name in others:
        assert {blend_key(name, tier) for tier in range(1, 6)} == {name}
    for name in CATEGORIES:
        for tier in range(1, 6):
            assert blend_key(blend_key(name, tier), tier) == blend_key(name, tier)


def test_the_weights_of_the_120b_profile_are_complete_and_those_of_the_report():
    assert len(CATEGORIES) == len(set(CATEGORIES)) == 16
    blend = read_profile(Path(__file__).parents[2] / "params" / "super-120b.yaml")["curate"]["blend"]
    phases = {phase: blend[phase]["categories"] for phase in ("phase1", "phase2")}
    for weights in phases.values():
        assert set(weights) <= set(CATEGORIES)
        assert sum(weights.values()) == pytest.approx(100, abs=1e-9)
    printed = {"phase1": {"syn-crawl-high": 22.4, "code": 14.0, "syn-crawl-medium": 11.3, "stem-sft": 11.1, "math": 6.4, "finepdfs": 6.1,
                          "multilingual": 5.0},
               "phase2": {"syn-crawl-high": 22.4, "finepdfs": 14.3, "code": 14.0, "stem-sft": 11.8, "crawl-high": 6.5, "math": 6.4,
                          "multilingual": 5.0}}
    for phase, weights in printed.items():
        assert {name: phases[phase][name] for name in weights} == weights


def test_share_of_code_lines():
    assert code_share("a = 1\nb = 2\nc = 3\nd = 4\n") == 0.0, "too few lines to tell"
    assert code_share("a = 1\n\nif a:\n    call(a)\nreturn a\nx += [1]\n") == 1.0
    assert code_share("\n".join(textwrap.wrap(NEWS, 40))) == 0.0
