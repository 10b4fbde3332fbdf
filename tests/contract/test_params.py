"""Parameters: strict, one line per mistake; overrides keep the file's comments."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from ruamel.yaml import YAML

from stagecraft.cli import plan, serve
from stagecraft.contract.cluster import read_cluster
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import load, params, parse, read_profile
from stagecraft.contract.preflight import check
from stagecraft.contract.profile import override, replace_section


@params
class Inner:
    size: int = Field(gt=0)


@params
class Example:
    steps: int
    rate: float
    name: str
    inner: Inner
    flag: bool = False

    def __post_init__(self):
        if self.steps % 2:
            raise ValueError("steps must be even")


GOOD = {"steps": 2, "rate": 0.5, "name": "a", "inner": {"size": 3}}


def test_a_whole_section_is_read():
    made = parse(Example, GOOD, "p: example")
    assert (made.steps, made.rate, made.inner.size, made.flag) == (2, 0.5, 3, False)


@pytest.mark.parametrize(("change", "expected"), [
    ({"stpes": 2}, "p: example.stpes: unknown key"),
    ({"inner": {"size": 3, "width": 1}}, "p: example.inner.width: unknown key"),
    ({"steps": "2"}, "p: example.steps: Input should be a valid integer (found '2')"),
    ({"steps": 2.5}, "p: example.steps"),
    ({"steps": True}, "p: example.steps"),
    ({"flag": 1}, "p: example.flag"),
    ({"rate": None}, "p: example.rate"),
    ({"rate": float("nan")}, "p: example.rate"),
    ({"inner": {"size": 0}}, "p: example.inner.size: Input should be greater than 0 (found 0)"),
    ({"inner": 3}, "p: example.inner"),
    ({"steps": 3}, "steps must be even"),
])
def test_each_kind_of_mistake_is_one_line(change, expected):
    with pytest.raises(UserError) as caught:
        parse(Example, GOOD | change, "p: example")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_that_are_not_plain_are_one_line():
    endless = []
    endless.append(endless)
    day = YAML(typ="safe").load("2026-12-01")  # it would be a text here, and no JSON where a pipeline takes the section
    for change in ({"name": endless}, {"inner": {(1, 2): 3}}, {"name": day}):
        with pytest.raises(UserError, match="p: example: no plain values"):
            parse(Example, GOOD | change, "p: example")


def test_a_missing_key_is_named():
    with pytest.raises(UserError, match=r"p: example\.rate: missing"):
        parse(Example, {key: value for key, value in GOOD.items() if key != "rate"}, "p: example")


@pytest.mark.parametrize(("text", "expected"), [
    ("a: [1", "not valid YAML"), ("- 1", "not a mapping"), ("other: {}", "no section 'example'"), ("a: 1\na: 2", "not valid YAML"),
    ("a: 2026-13-41", "not valid YAML"),
])
def test_an_unusable_profile_is_one_line(tmp_path, text, expected):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=expected) as caught:
        load(Example, "example", path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("reader", "name"), [
    (lambda path: load(Example, "example", path), "example"), (read_cluster, "cluster"),
    (lambda path: check(path.read_text(), str(path)), "curate"), (lambda path: plan.main([str(path)]), "pretrain"),
    (lambda path: serve.settings(None), "serve")], ids=["load", "cluster", "preflight", "plan", "serve"])
def test_whoever_reads_a_profile_tells_alike_of_a_section_that_is_missing(tmp_path, monkeypatch, reader, name):
    path = tmp_path / "mine.yaml"
    path.write_text("rl: {}\n")
    monkeypatch.setenv("STAGECRAFT_PARAMS", str(path))
    with pytest.raises(UserError) as caught:
        reader(path)
    assert str(caught.value) == f"{path}: no section '{name}' - add it; the repository's params.yaml shows every key"


@pytest.mark.parametrize("text", ["serve: {}", "serve:", "serve: 3"])
def test_a_section_within_a_section_is_told_of_too(tmp_path, monkeypatch, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    monkeypatch.setenv("STAGECRAFT_PARAMS", str(path))
    with pytest.raises(UserError, match=r"mine\.yaml: serve: no section 'server' - add it"):
        serve.settings(None)


def test_a_profile_in_another_encoding(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("sft:\n  steps: 3  # für alle\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.yaml: not UTF-8 text: invalid start byte at byte 20 - save it as UTF-8"):
        read_profile(path)


@pytest.mark.parametrize("text", ["sft: [1", "sft:\n  steps: 1\n  steps: 2\n"])
def test_an_override_of_an_unusable_profile_names_it(text):
    with pytest.raises(UserError, match=r"mine\.yaml:\d: not valid YAML"):
        override(text, ["sft.steps=3"], "mine.yaml")


def test_a_missing_profile(tmp_path):
    with pytest.raises(UserError, match="cannot read parameters"):
        read_profile(tmp_path / "none.yaml")


TEXT = """\
# The head.
pretrain:
  steps: 500        # optimizer steps
  rate: 3e-4        # peak
  layers: [M, E]    # kinds
sft:
  steps: 7
"""


def test_an_override_changes_one_value_and_no_comment():
    text, changes = override(TEXT, ["pretrain.steps=10"])
    assert changes == ["pretrain.steps: 500 -> 10"]
    old, new = TEXT.splitlines(), text.splitlines()
    different = [(a, b) for a, b in zip(old, new) if a != b]
    assert len(old) == len(new)
    assert len(different) == 1
    assert different[0][1].split() == ["steps:", "10", "#", "optimizer", "steps"]


@given(st.integers(-(10**9), 10**9) | st.booleans() | st.floats(1e-9, 1e9) | st.lists(st.integers(0, 9), max_size=3))
def test_an_override_is_read_back(value):
    from json import dumps

    text, _ = override(TEXT, [f"pretrain.steps={dumps(value)}"])
    found = YAML(typ="safe").load(text)
    assert found["pretrain"]["steps"] == value
    assert found["sft"] == {"steps": 7}


def test_an_override_that_changes_nothing_leaves_the_text_alone():
    assert override(TEXT, ["pretrain.steps=500"]) == (TEXT, [])


@pytest.mark.parametrize("assignment", ["pretrain.steps", "=3", "pretrain.stpes=3", "none.steps=3", "pretrain.steps.x=3",
                                        "pretrain.steps=["])
def test_a_wrong_override(assignment):
    with pytest.raises(UserError):
        override(TEXT, [assignment])


def test_a_section_is_replaced_only_if_it_differs(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(TEXT)
    before = path.stat().st_mtime_ns
    replace_section(path, "sft", {"steps": 7})
    assert path.stat().st_mtime_ns == before
    replace_section(path, "sft", {"steps": 8})
    assert read_profile(path)["sft"] == {"steps": 8}
    assert "# optimizer steps" in path.read_text()
