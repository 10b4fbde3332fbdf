"""Pre-training whose ranks are lost: torchrun starts them again, or another count of them goes on, from the last checkpoint."""

import shutil
import signal
import time
from random import Random

import psutil
import pytest
from ruamel.yaml import YAML

from tests.processes import below
from tests.stages import commands
from tests.stages.commands import begun_at, curve, end, kill, kill_when, project, run, wait_for

pytestmark = pytest.mark.slow

CHECKPOINT = "pretrain/*/checkpoints/step-*"


@pytest.fixture
def straight(finished):
    """A project whose pre-training was never interrupted, and the metrics of that."""
    return finished[0], finished[1]["pretrain"]


@pytest.fixture
def fresh(straight, tmp_path):
    where = project(tmp_path / "project")
    shutil.copytree(straight[0] / "artifacts" / "corpus", where / "artifacts" / "corpus")
    return where


def start(where, ranks, *options):
    return commands.start("pretrain", where, "-m", "stagecraft.engine.torchrun", "--standalone", "--nproc-per-node", str(ranks), *options)


def test_torchrun_starts_killed_ranks_again_and_the_bits_are_the_same(straight, fresh):
    process = start(fresh, 2, "--max-restarts", "1")
    wait_for(process, fresh, CHECKPOINT)
    (rank,) = below(process.pid, lambda child: child.environ().get("RANK") == "1")
    rank.send_signal(signal.SIGKILL)
    end(process, "pretrain", fresh)
    first, second = begun_at(fresh, "pretrain")
    assert first == 0 and second >= 2
    weights = "artifacts/base/model.safetensors"
    assert (fresh / weights).read_bytes() == (straight[0] / weights).read_bytes()


def small(where, processes):
    """Sixty steps as short as they get, with a checkpoint after every sixth."""
    profile = YAML().load(where / "params.yaml")
    profile["pretrain"].update(processes=processes, steps=60, warmup_steps=6, decay_steps=12, checkpoint_every=6, sequence_length=32,
                               global_batch=2, micro_batch=1, mtp_depths=1, diagnose_every=0, heldout_every=20, heldout_look_rows=2,
                               heldout_rows=2)
    profile["pretrain"]["architecture"].update(hybrid_override_pattern="M*E", n_routed_experts=4)
    profile["pretrain"]["merge"].update(every=20)
    YAML().dump(profile, where / "params.yaml")


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_any_moment_it_goes_on_with_the_same_bits(fresh, tmp_path, monkeypatch, processes):
    """Once while it saves, once at a moment of a step that comes after that; beside it the run that is not."""
    seed = time.time_ns()
    print(f"seed of the moments: {seed}")
    random = Random(seed)
    monkeypatch.setenv("STAGECRAFT_NUMERICS", "eager")  # the same bits, and nothing to compile
    small(fresh, processes)
    other = tmp_path / "other"
    shutil.copytree(fresh, other)
    uninterrupted = commands.start("pretrain", other)

    saved = random.randrange(12, 31, 6)
    saving = f"pretrain/*/checkpoints/.step-{saved:08d}.tmp"
    kill_when("pretrain", fresh, saving)
    assert list((fresh / ".work").glob(saving))
    (points,) = (fresh / ".work").glob("pretrain/*/train.curve.jsonl")
    step = random.randrange(len(points.read_text().splitlines()) + 1, 56)
    process = commands.start("pretrain", fresh)
    while len(points.read_text().splitlines()) < step:
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.1))
    kill(process)
    assert not (fresh / "metrics" / "pretrain.json").exists()

    again, metrics = run("pretrain", fresh), end(uninterrupted, "pretrain", other)
    begun, second, third = begun_at(fresh, "pretrain")
    assert (begun, second) == (0, saved - 6) and third >= 6 * ((step - 1) // 6 - 1)  # where the last was begun, the one before is whole
    assert again["heldout_loss"] == metrics["heldout_loss"]
    assert len(curve("pretrain", fresh)) == 60 and curve("pretrain", fresh) == curve("pretrain", other)
    weights = "artifacts/base/model.safetensors"
    assert (fresh / weights).read_bytes() == (other / weights).read_bytes()


def test_killed_in_its_long_context_phase_it_goes_on_with_the_same_bits(straight, fresh, tmp_path):
    """The merged weights are taken at the end of the decay, before the checkpoint that the second start goes on from.

    From there on the two ranks share rows, where they were data parallel.
    """
    profile = YAML().load(fresh / "params.yaml")
    profile["pretrain"]["long_context"].update(steps=6, alternating_steps=3, sequence_length=128, short_length=64, lr=1e-3,
                                               layout={"tensor": 1, "pipeline": 1, "context": 2, "expert": 1})
    YAML().dump(profile, fresh / "params.yaml")
    other = tmp_path / "other"
    shutil.copytree(fresh, other)
    metrics = run("pretrain", other)
    assert metrics["tokens"] == straight[1]["tokens"] + 6 * 2 * 128
    kill_when("pretrain", fresh, "pretrain/*/checkpoints/step-0000001*")
    again = run("pretrain", fresh)
    first, further, second, third = begun_at(fresh, "pretrain")  # a start has a bar for the steps up to the decay's end, one for the rest
    assert (first, further) == (0, 8) and second == third >= 10
    assert {**again, **(times := {"seconds": 0, "tokens_per_second": 0})} == {**metrics, **times}
    weights = "artifacts/base/model.safetensors"
    assert (fresh / weights).read_bytes() == (other / weights).read_bytes() != (straight[0] / weights).read_bytes()
    assert (fresh / "plots/pretrain/merged.csv").read_bytes() == (other / "plots/pretrain/merged.csv").read_bytes()


def test_a_hung_rank_ends_the_stage_with_its_name_and_a_stack(fresh):
    profile = fresh / "params.yaml"
    assert "hang_seconds: 600" in profile.read_text()
    changed = profile.read_text().replace("hang_seconds: 600", "hang_seconds: 45").replace("\n  steps: 8\n", "\n  steps: 4000\n", 1)
    profile.write_text(changed)
    process = commands.start("pretrain", fresh)
    wait_for(process, fresh, CHECKPOINT)
    (rank,) = below(process.pid, lambda child: child.environ().get("RANK") == "1")
    rank.send_signal(signal.SIGSTOP)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 75, output[-3000:]
    assert "rank 1 has been silent for" in output and "it goes on from the last checkpoint" in output
    (stack,) = (fresh / ".work" / "pretrain").glob("*/ranks/stack-0.txt")
    assert "components/pretrain/train.py" in stack.read_text()  # in a step or in what lies between two


def test_another_count_of_ranks_goes_on_from_the_checkpoint(straight, fresh):
    """The same samples in the same order; sums in another order, and rounding noise by other ranks."""
    process = start(fresh, 2)
    wait_for(process, fresh, CHECKPOINT)
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:  # torchrun's ranks have sessions of their own
        each.send_signal(signal.SIGKILL)
    process.wait()
    metrics = end(start(fresh, 1), "pretrain", fresh)
    first, second = begun_at(fresh, "pretrain")
    assert first == 0 and second >= 2
    found, expected = curve("pretrain", fresh), curve("pretrain", straight[0])
    assert found[:second] == expected[:second] and len(found) == len(expected)  # of before the interruption
    assert float(found[second]["loss"]) == pytest.approx(float(expected[second]["loss"]), rel=1e-5)
    assert [float(row["loss"]) for row in found] == pytest.approx([float(row["loss"]) for row in expected], rel=1e-3)
    assert metrics["heldout_loss"] == pytest.approx(straight[1]["heldout_loss"], rel=1e-3)


def refused(process, where):
    """What it says; nothing was built, no order of rows, no step."""
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 2, output[-3000:]
    assert "Traceback (most recent call last)" not in output
    (work,) = (where / ".work" / "pretrain").iterdir()
    assert not {path.name for path in work.iterdir()} & {"index", "checkpoints", "train.curve.jsonl"}
    return output


def test_a_count_of_ranks_that_does_not_divide_the_work_is_one_line(fresh):
    output = refused(start(fresh, 3), fresh)
    assert "error: pretrain.global_batch / micro_batch: 2 microbatches per step cannot be split evenly over 3 data-parallel ranks" in output


def test_ranks_that_the_last_phase_cannot_use_are_refused_before_the_first(fresh):
    profile = YAML().load(fresh / "params.yaml")
    profile["pretrain"]["processes"] = 1
    profile["pretrain"]["long_context"].update(steps=6, sequence_length=128, short_length=64,
                                               layout={"tensor": 1, "pipeline": 1, "context": 2, "expert": 1})
    YAML().dump(profile, fresh / "params.yaml")
    output = refused(commands.start("pretrain", fresh), fresh)
    assert "error: pretrain.long_context.layout: 1 ranks cannot be divided into tensor 1 x pipeline 1 x context 2" in output
