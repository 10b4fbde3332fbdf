"""The ranks under torchrun wait for the first while it shows that it is at work, not for one that is gone or of another attempt."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from stagecraft.contract import starting


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(starting, "_BEAT", 0.05)
    monkeypatch.setattr(starting, "_PATIENCE", 0.5)
    for name, value in (("RANK", "0"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1234")):
        monkeypatch.setenv(name, value)


def waits(path) -> float:
    starting.wait_for_first(path)
    return time.monotonic()


def test_they_wait_longer_than_their_patience_for_one_that_works(tmp_path):
    path = tmp_path / "begun.json"
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(waits, path)
        with starting.others_wait(path):
            time.sleep(1.2)
            through = time.monotonic()
        assert through < other.result(timeout=5) < through + 2.5
    assert waits(path) < time.monotonic() + 0.1  # who comes later need not wait


@pytest.mark.parametrize("told", ["MASTER_PORT", "STAGECRAFT_ATTEMPT"])
def test_what_an_earlier_attempt_said_does_not_count(tmp_path, monkeypatch, told):
    path = tmp_path / "begun.json"
    with starting.others_wait(path):
        pass
    monkeypatch.setenv(told, "1235")
    begun = time.monotonic()
    assert waits(path) - begun > 0.5


def test_one_that_is_gone_or_fails_is_not_waited_for_without_end(tmp_path):
    path = tmp_path / "begun.json"
    begun = time.monotonic()
    assert 0.5 < waits(path) - begun < 3  # it has never been there
    with pytest.raises(OSError), starting.others_wait(path):
        raise OSError("a corrupt input")
    assert "through" not in json.loads(path.read_text())
    begun = time.monotonic()
    assert 0.5 < waits(path) - begun < 3


def test_without_ranks_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK")
    with starting.others_wait(tmp_path / "begun.json"):
        pass
    assert not list(tmp_path.iterdir())
