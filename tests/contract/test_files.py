"""Directories that are there whole or not at all."""

import shutil
from pathlib import Path

import pytest

from stagecraft.contract.files import whole_directory


def test_a_directory_is_there_once_all_of_it_is(tmp_path):
    final = tmp_path / "work" / "policy"
    with pytest.raises(KeyboardInterrupt), whole_directory(final) as directory:
        (directory / "half").write_text("1")
        raise KeyboardInterrupt
    assert not final.exists()
    with whole_directory(final) as directory:
        assert list(directory.iterdir()) == []  # nothing of what was left unfinished
        (directory / "sub").mkdir()
        (directory / "sub" / "weights").write_text("2")
        assert not final.exists()
    assert (final / "sub" / "weights").read_text() == "2" and list(final.parent.iterdir()) == [final]


def test_what_stood_there_stays_until_another_is_whole(tmp_path):
    for text, error in (("old", None), ("new", RuntimeError), ("new", None)):
        try:
            with whole_directory(tmp_path / "part") as directory:
                (directory / text).write_text(text)
                if error:
                    raise error
        except RuntimeError:
            pass
        assert [path.name for path in (tmp_path / "part").iterdir()] == ["old" if error else text]


def test_a_kill_while_the_old_one_goes_leaves_no_part_of_it(tmp_path, monkeypatch):
    def killed(path, **_):
        (Path(path) / "1").unlink()
        raise KeyboardInterrupt

    part = tmp_path / "part"
    for name in ("old", "new", "last"):
        try:
            with whole_directory(part) as directory:
                for number in "12":
                    (directory / number).write_text(name)
                if name == "new":
                    monkeypatch.setattr(shutil, "rmtree", killed)
        except KeyboardInterrupt:
            monkeypatch.undo()
        assert {path.name: path.read_text() for path in part.iterdir()} == {"1": name, "2": name}
    assert list(tmp_path.iterdir()) == [part]
