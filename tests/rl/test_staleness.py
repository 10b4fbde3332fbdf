"""The stage in turn and beside: killed while it generates or updates it keeps what was drawn, and ends with the bits of an unbroken run."""

import json
import re
import signal
from collections import Counter

import psutil
import pytest

from tests.processes import named
from tests.rl.conftest import copy
from tests.stages.commands import kill_when, run, start, wait_for

pytestmark = pytest.mark.slow


def curve(where):
    head, *rows = [line.split(",") for line in (where / "plots/rl/train.csv").read_text().splitlines()]
    return [{name: float(value) for name, value in zip(head, row) if value} for row in rows]


def rollouts(where):
    return [json.loads(line) for line in (where / "artifacts/aligned/rollouts.jsonl").read_text().splitlines()]


def kill_at_step(where, number):
    kill_when("rl", where, f"rl/*/stages/*/rollouts/{number:08d}.jsonl")


def drawn(where):
    """What is kept, and when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in (where / ".work/rl").glob("*/stages/*/rollouts/*.jsonl")}


@pytest.mark.parametrize("staleness", [1, 0])
def test_a_kill_loses_no_finished_rollouts_and_changes_no_bit(tuned, unbroken, tmp_path, staleness):
    straight = unbroken(staleness)
    metrics = json.loads((straight / "metrics" / "rl.json").read_text())
    rows = curve(straight)
    assert [row["staleness"] for row in rows] == [0, *[staleness] * 3] and metrics["staleness"] == staleness * 0.75
    assert max(row["taught"] for row in rows[:-1]) > 0  # weights change, so a mistake shows
    assert rows[0]["mismatch"] < 1e-4  # the first step is on-policy either way
    assert staleness or metrics["mismatch_max"] < 1e-4
    broken = copy(tuned, tmp_path / "broken", staleness=staleness, checkpoint_every=3)
    kill_at_step(broken, 1)  # before the first checkpoint
    kept = drawn(broken)
    assert len(kept) >= 2
    kill_at_step(broken, 2)
    assert drawn(broken).items() >= kept.items()
    run("rl", broken)
    for name in ("model.safetensors", "rollouts.jsonl"):
        assert (broken / "artifacts/aligned" / name).read_bytes() == (straight / "artifacts/aligned" / name).read_bytes(), name


def test_weights_pushed_in_flight_are_taken_up_between_two_tokens(tuned, unbroken, tmp_path):
    where = copy(tuned, tmp_path / "flight", in_flight=True, steps=6, rollouts_kept=30)
    metrics = run("rl", where)
    rows = rollouts(where)
    assert Counter(row["step"] for row in rows) == dict.fromkeys(range(6), 5)  # of every step alike
    assert all(max(0, row["step"] - 1) == row["versions"][0] <= row["versions"][1] <= row["step"] for row in rows)
    assert any(begun < ended for begun, ended in (row["versions"] for row in rows))
    assert all(row["versions"] == [max(0, row["step"] - 1)] * 2 for row in rollouts(unbroken(1)))
    assert 0 <= metrics["staleness"] <= 1 and 0 < metrics["mismatch_max"] < 1


def test_a_lost_generator_is_one_line(tuned, tmp_path):
    where = copy(tuned, tmp_path / "lost", steps=200)
    process = start("rl", where)
    wait_for(process, where, "rl/*/stages/*/rollouts/*.jsonl")
    for generator in named(process.pid, "spawn_main"):
        generator.kill()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and "error: rl: the generator was lost (exit code -9)" in output and "Traceback" not in output


def test_a_generator_that_hangs_ends_the_stage_and_leaves_no_process(tuned, tmp_path):
    where = copy(tuned, tmp_path / "hung", steps=200, hang_seconds=90)
    process = start("rl", where)
    wait_for(process, where, "rl/*/stages/*/rollouts/*.jsonl")
    generators = named(process.pid, "spawn_main")
    for generator in generators:
        generator.send_signal(signal.SIGSTOP)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 75, output[-3000:]
    assert re.search(r"rank 0 at .*, called from \S+/components/rl/processes.py:\d+ \(hear\)", output), output[-3000:]
    assert psutil.wait_procs(generators, timeout=10)[1] == []


def test_a_curriculum_is_measured_once(tuned, tmp_path):
    where = copy(tuned, tmp_path / "curriculum", curriculum={"samples": 2, "drop_above": 1.0})
    kill_at_step(where, 0)
    (measured,) = (where / ".work/rl").glob("*/stages/*/rollouts/solved.json")
    before = measured.stat().st_mtime_ns
    assert len(json.loads(measured.read_text())["solved"]) == 60
    kill_at_step(where, 3)
    assert measured.stat().st_mtime_ns == before
