"""Manifests and the run log: whole or not at all, every byte accounted for, curves that survive a kill."""

import csv
import hashlib
import io
import json
import os

import pytest

from stagecraft.contract import manifest
from stagecraft.contract.errors import UserError
from stagecraft.contract.events import EventSink, read_events, replay
from stagecraft.contract.files import sha256
from stagecraft.contract.runlog import RunLog
from stagecraft.contract.terminal import PlainSink
from stagecraft.contract.verified import Verified


@pytest.fixture
def artifact(tmp_path):
    directory = tmp_path / "artifacts" / "base"
    (directory / "sub").mkdir(parents=True)
    (directory / "weights.bin").write_bytes(b"weights")
    (directory / "sub" / "config.json").write_text("{}")
    manifest.write(directory, stage="pretrain", params={"steps": 1}, inputs={}, code="c", environment={}, metrics={"loss": 1.0})
    return directory


def test_a_manifest_names_every_file_with_its_sha256(artifact):
    files = json.loads((artifact / "manifest.json").read_text())["files"]
    assert set(files) == {"weights.bin", "sub/config.json"}
    assert files["weights.bin"] == {"size": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert manifest.verify(artifact)["stage"] == "pretrain"


def test_the_digest_is_of_the_files_alone(artifact):
    first = manifest.read(artifact)["digest"]
    again = manifest.write(artifact, stage="x", params={}, inputs={}, code="", environment={"host": 1}, metrics={})
    assert again == first
    (artifact / "weights.bin").write_bytes(b"weighty")
    assert manifest.write(artifact, stage="x", params={}, inputs={}, code="", environment={}, metrics={}) != first


@pytest.mark.parametrize(("damage", "expected"), [
    (lambda d: (d / "weights.bin").write_bytes(b"weightS"), "weights.bin: corrupt file"),
    (lambda d: (d / "weights.bin").write_bytes(b"weight"), "weights.bin: corrupt file"),
    (lambda d: (d / "sub" / "config.json").unlink(), "config.json: missing file"),
    (lambda d: (d / "manifest.json").unlink(), "not a finished artifact"),
    (lambda d: (d / "manifest.json").write_text("{"), "unreadable manifest"),
    (lambda d: (d / "manifest.json").write_text("[]"), "unreadable manifest"),
    (lambda d: (d / "manifest.json").write_text("{}"), "unreadable manifest"),
    (lambda d: (d / "manifest.json").write_text('{"stage": "", "digest": "d", "files": []}'), "unreadable manifest"),
    (lambda d: (d / "manifest.json").write_text('{"stage": "", "digest": "d", "files": {"x": 7}}'), "unreadable manifest"),
    (lambda d: (d / "manifest.json").write_text('{"stage": "", "digest": "d", "files": {"x": {"size": 7}}}'), "unreadable manifest"),
    (lambda d: (d / "manifest.json").write_text('{"stage": "", "digest": 3, "files": {}}'), "unreadable manifest"),
])
def test_damage_is_one_line_that_says_how_to_mend_it(artifact, damage, expected):
    damage(artifact)
    with pytest.raises(UserError, match=expected) as caught:
        manifest.verify(artifact)
    assert "dvc repro pretrain" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_was_found_whole_is_not_read_again_until_it_changes(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr("stagecraft.contract.verified._LATELY_NS", 0)
    manifest.verify(artifact, Verified(tmp_path / "verified.json"))
    read = []
    monkeypatch.setattr("stagecraft.contract.manifest.sha256_each", lambda paths: read.extend(paths) or map(sha256, paths))
    told = []
    manifest.verify(artifact, Verified(tmp_path / "verified.json"), lambda: told.append(1))
    assert (read, len(told)) == ([], 2)
    weights = artifact / "weights.bin"
    before = weights.stat()
    weights.write_bytes(b"weightS")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # all that shows it is the time of the inode's change
    with pytest.raises(UserError, match="corrupt file"):
        manifest.verify(artifact, Verified(tmp_path / "verified.json"))
    assert read == [weights]


def test_a_file_that_changed_a_moment_ago_is_read_again(artifact, tmp_path):
    manifest.verify(artifact, Verified(tmp_path / "verified.json"))
    assert json.loads((tmp_path / "verified.json").read_text()) == {}


def test_what_was_read_is_remembered_before_all_is(artifact, tmp_path, monkeypatch):
    """A kill while terabytes are read does not have them read again."""
    monkeypatch.setattr("stagecraft.contract.verified._LATELY_NS", 0)
    monkeypatch.setattr("stagecraft.contract.verified._SECONDS", -1)
    kept = []
    manifest.verify(artifact, Verified(tmp_path / "verified.json"),
                    lambda: kept.append(len(json.loads((tmp_path / "verified.json").read_text()))))
    assert kept == [1, 2]


@pytest.mark.parametrize("rubbish", ["{", "[]", '{"x": 3}'])
def test_an_unreadable_memory_is_none(artifact, tmp_path, rubbish):
    (tmp_path / "verified.json").write_text(rubbish)
    assert manifest.verify(artifact, Verified(tmp_path / "verified.json"))["stage"] == "pretrain"


def test_curves_survive_a_kill_and_a_rewind(tmp_path):
    work, plots = tmp_path / "work", tmp_path / "plots"
    work.mkdir()
    killed = RunLog("sft", plots, work)
    for step in range(1, 6):
        killed.step(step, loss=1 / step)
    with (work / "train.curve.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')  # cut off by the kill
    resumed = RunLog("sft", plots, work)
    resumed.rewind(3)
    resumed.step(4, loss=0.25, rate=2.0)
    resumed.close("FINISHED", {})
    rows = list(csv.DictReader((plots / "train.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[-1] == {"step": "4", "loss": "0.25", "rate": "2.0"}


def test_the_event_file_replays_a_bar(tmp_path, monkeypatch, capsys):
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv("STAGECRAFT_EVENTS", str(path))
    sink = EventSink("sft")
    sink.bar_start("training", 100, "step", 0)
    for done in range(1, 101):
        sink.bar_advance(done, {"loss": 1 / done})
    sink.bar_end()
    sink.note("saved")
    with path.open("a") as stream:
        stream.write('{"event": "no')  # still being written
    events, offset = read_events(path)
    assert [event["event"] for event in events][:2] == ["open", "bar_start"]
    assert sum(event["event"] == "bar_advance" for event in events) < 20  # told a few times a second, not at every step
    assert read_events(path, offset) == ([], offset)
    plain = PlainSink("stage 3 of 7: sft")
    for event in events:
        replay(event, plain)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("stage 3 of 7: sft | training 100/100 step  loss 0.01")
    assert shown[-1] == "stage 3 of 7: sft | saved"


def test_the_time_left_is_that_of_late_steps(monkeypatch):
    """Of 100 steps the first takes a minute, as one that compiles, each further one a second."""
    clock = [0.0]
    monkeypatch.setattr("stagecraft.contract.terminal.time.monotonic", lambda: clock[0])
    out = io.StringIO()
    plain = PlainSink("head", out)
    plain.bar_start("training", 100, "step", 0)
    for step in range(1, 51):
        clock[0] += 60 if step == 1 else 1
        plain.bar_advance(step, {})
    lines = out.getvalue().splitlines()
    assert lines[0] == "head | training 1/100 step  0.0167 step/s  1:39:00 left"
    assert lines[1] == "head | training 6/100 step  1 step/s  1:34 left"
    assert lines[-1] == "head | training 46/100 step  1 step/s  0:54 left"
