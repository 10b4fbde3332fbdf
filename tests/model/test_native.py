"""Compiled loops that cannot be had as they should: made again, or done without."""

from pathlib import Path

import pytest

from stagecraft import native


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    return tmp_path / "numbers"


def test_a_spoiled_library_is_made_again(package, tmp_path):
    made = native._built(package)
    made.write_bytes(b"")
    assert native.library.__wrapped__(package).one() == 1
    assert made.stat().st_size > 0 and list((tmp_path / "cache").rglob("*.so")) == [made]


def test_without_a_home_there_is_a_warning_and_no_library(package, monkeypatch):
    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", none)
    with pytest.warns(UserWarning, match="loops of numbers run in PyTorch's operators.*home directory"):
        assert native.library.__wrapped__(package) is None
