"""Pre-training whose ranks are lost: torchrun starts them again, or another count of them goes on, from the last checkpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.stages.test_training_stages import ROOT, project, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A project whose pre-training was never interrupted."""
    where = project(tmp_path_factory.mktemp("straight") / "project")
    run("curate", where)
    return where, run("pretrain", where)


@pytest.fixture
def fresh(straight, tmp_path):
    where = project(tmp_path / "project")
    shutil.copytree(straight[0] / "artifacts" / "corpus", where / "artifacts" / "corpus")
    return where


def start(where, ranks, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "stagecraft.engine.torchrun", "--standalone", "--nproc-per-node", str(ranks), *options, "-m",
         "components.pretrain"], cwd=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": "",
             "STAGECRAFT_EVENTS": str(where / "events.jsonl")})


def wait_for_a_checkpoint(process, where):
    deadline = time.monotonic() + 240
    while not (found := sorted((where / ".work" / "pretrain").glob("*/checkpoints/step-*"))):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-3000:]
        time.sleep(0.02)
    return int(found[-1].name.removeprefix("step-"))


def begun_at(where):
    """Steps that were done already, each time training began."""
    events = [json.loads(line) for line in (where / "events.jsonl").read_text().splitlines()]
    return [event["done"] for event in events if event["event"] == "bar_start"]


def end(process):
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-3000:]
    return output


def test_torchrun_starts_killed_ranks_again_and_the_bits_are_the_same(straight, fresh):
    process = start(fresh, 2, "--max-restarts", "1")
    wait_for_a_checkpoint(process, fresh)
    (rank,) = [child for child in psutil.Process(process.pid).children(recursive=True) if child.environ().get("RANK") == "1"]
    rank.send_signal(signal.SIGKILL)
    end(process)
    first, second = begun_at(fresh)
    assert first == 0 and second >= 2
    weights = "artifacts/base/model.safetensors"
    assert (fresh / weights).read_bytes() == (straight[0] / weights).read_bytes()


def test_another_count_of_ranks_goes_on_from_the_checkpoint(straight, fresh):
    """The same samples in the same order; sums in another order, and rounding noise by other ranks."""
    process = start(fresh, 2)
    wait_for_a_checkpoint(process, fresh)
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:  # torchrun's ranks have sessions of their own
        each.send_signal(signal.SIGKILL)
    process.wait()
    end(start(fresh, 1))
    first, second = begun_at(fresh)
    assert first == 0 and second >= 2
    metrics = json.loads((fresh / "metrics" / "pretrain.json").read_text())
    for key in ("loss_last", "heldout_loss"):
        assert metrics[key] == pytest.approx(straight[1][key], abs=0.02), key
    assert metrics["loss_first"] == straight[1]["loss_first"]  # of the curve before the interruption


def test_a_count_of_ranks_that_does_not_divide_the_work_is_one_line(fresh):
    process = start(fresh, 3)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 2, output[-3000:]
    assert "error: pretrain: global_batch / micro_batch: 2 parts of a step cannot be shared evenly by 3 data-parallel ranks" in output
    assert "Traceback (most recent call last)" not in output
