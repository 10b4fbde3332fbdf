"""Several generation workers: how prompts are shared, and the stage with two of them, as processes and as Ray's actors."""

import json
import os
import re
import signal
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.rl.generator import Job
from components.rl.params import Generators, Params
from components.rl.processes import Processes, own_gpus
from components.rl.prompts import share
from components.rl.ray_actors import Actors
from components.rl.rollouts import Draw, Sample, draw_path, merge
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import parse, read_profile
from tests.processes import named
from tests.rl.conftest import copy
from tests.rl.test_prompts import PARAMS
from tests.rl.test_staleness import curve
from tests.stages.commands import ROOT, run, start, wait_for

TWO = {"launcher": "process", "count": 2, "tensor": 1}


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 4))
def test_every_prompt_is_drawn_once_its_group_is_whole_and_the_order_is_that_of_one_worker(prompts, workers, generations):
    places = [share(prompts, worker, workers) for worker in range(workers)]
    drawn = [Draw([Sample(str(place), "sort", "", [place], 0) for place in own for _ in range(generations)], float(worker))
             for worker, own in enumerate(places)]
    merged = merge(drawn)
    assert [sample.id for sample in merged.samples] == [str(place) for place in range(prompts) for _ in range(generations)]
    assert merged.seconds == workers - 1
    assert max(map(len, places)) - min(map(len, places)) <= 1 and all(a.stop == b.start for a, b in pairwise(places))


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_shares_have_names_of_their_own_and_begin_with_the_step(step, workers):
    names = {draw_path(Path(), step, worker, workers).name for worker in range(workers)}
    assert len(names) == workers and {int(name[:8]) for name in names} == {step}
    assert workers > 1 or names == {f"{step:08d}.jsonl"}


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 16), st.integers(1, 4))
def test_workers_have_gpus_of_their_own_where_there_are_enough(workers, tensor, there, trainers):
    visible = [f"GPU-{number}" for number in range(there)]
    if tensor > there:
        with pytest.raises(UserError, match=f"{tensor} GPUs divide a generator's model, and there are {there} here"):
            own_gpus(0, tensor, visible, trainers)
        return
    taken = [own_gpus(worker, tensor, visible, trainers) for worker in range(workers)]
    assert all(len(set(gpus)) == tensor for gpus in taken)
    needed = [gpu for gpus in taken for gpu in gpus]
    if trainers + len(needed) <= there:
        assert len(set(needed)) == len(needed) and not {*needed} & {*visible[:trainers]}
    else:  # the load is spread: no GPU has two more of them than another
        ranks = [visible[rank % there] for rank in range(trainers)]
        loads = [(needed + ranks).count(gpu) for gpu in visible]
        assert max(loads) - min(loads) <= 1


def test_a_worker_on_a_cpu_has_no_gpus():
    assert own_gpus(1, 2, [], 1) == []


def test_more_workers_than_prompts_are_refused():
    rl = read_profile(ROOT / "params.yaml")["rl"] | {"generators": {"launcher": "process", "count": 33, "tensor": 1}}
    with pytest.raises(UserError, match="33 generators have no share each in 32 prompts_per_step"):
        parse(Params, rl, "rl")


def job(tmp_path, **changes):
    return Job(replace(PARAMS, generators=Generators(launcher="ray", count=2, tensor=1), **changes), tmp_path, tmp_path, None, tmp_path, ())


def test_workers_are_started_with_their_gpus_and_deaf_to_ctrl_c_which_is_the_trainers(tmp_path, monkeypatch):
    heard, seen = [], []
    monkeypatch.setattr("components.rl.processes._visible_gpus", lambda: ["0", "1", "2", "3"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")

    def start():  # what a process of its own is started with, and looks at in its imports
        heard.append(signal.getsignal(signal.SIGINT))
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])

    process = SimpleNamespace(start=start)
    context = SimpleNamespace(Pipe=lambda: (SimpleNamespace(), SimpleNamespace(close=lambda: None)), Process=lambda **_: process)
    monkeypatch.setattr("torch.multiprocessing.get_context", lambda _: context)
    before = signal.getsignal(signal.SIGINT)
    Processes(job(tmp_path), {})
    assert seen == ["1", "2"] and os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert heard == [signal.SIG_IGN] * 2 and signal.getsignal(signal.SIGINT) == before != signal.SIG_IGN


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"rl.generators.launcher: `ray` needs the package ray, which is not installed - install ray, or"):
        Actors(job(tmp_path), {})


def test_workers_that_do_not_fit_the_cluster_are_refused(tmp_path):
    ray = pytest.importorskip("ray", reason="ray is not in the lock")
    with pytest.raises(UserError, match=r"rl.generators.count: 2 workers of 5000 CPU each do not fit into Ray's"):
        Actors(job(tmp_path, threads=5000), {"weight": torch.zeros(1)})
    ray.shutdown()


def rollouts(where):
    return [json.loads(line) for line in (where / "artifacts/aligned/rollouts.jsonl").read_text().splitlines()]


def kill_a_worker(where, name, kept):
    """SIGKILL to the last started process of that name once a file of the work directory is there; what the stage said."""
    process = start("rl", where)
    wait_for(process, where, f"rl/*/stages/*/rollouts/{kept}")
    workers = named(process.pid, name)
    assert len(workers) == 2
    max(workers, key=lambda each: (each.create_time(), each.pid)).kill()  # a tick of the clock can see both start
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2 and "Traceback" not in output, output
    return output


@pytest.fixture(scope="module")
def shared(tuned, tmp_path_factory):
    """A finished run with two workers."""
    where = copy(tuned, tmp_path_factory.mktemp("shared") / "project", generators=TWO)
    run("rl", where)
    return where


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [1, 0])
def test_two_workers_draw_what_one_draws(tuned, shared, unbroken, tmp_path, staleness):
    one = unbroken(staleness)
    two = shared if staleness else copy(tuned, tmp_path / "two", staleness=0, generators=TWO)
    if not staleness:
        run("rl", two)
    assert [row["staleness"] for row in curve(two)] == [0, *[staleness] * 3] and max(row["taught"] for row in curve(two)) > 0
    alone, together = rollouts(one), rollouts(two)
    # Sums in batches of another size round differently, which the updates carry on; the first step has seen none.
    assert [row for row in alone if row["step"] == 0] == [row for row in together if row["step"] == 0]
    assert [(row["step"], row["id"]) for row in alone] == [(row["step"], row["id"]) for row in together]


@pytest.mark.slow
def test_an_engine_that_two_processes_divide_draws_what_one_draws(tuned, unbroken, tmp_path):
    where = copy(tuned, tmp_path / "divided", generators={"launcher": "process", "count": 1, "tensor": 2})
    metrics = run("rl", where)
    assert max(row["taught"] for row in curve(where)) > 0 and curve(where)[0]["mismatch"] < 1e-4
    first = [[row for row in rollouts(each) if row["step"] == 0] for each in (unbroken(1), where)]
    assert first[0] == first[1] and len(first[0]) > 0  # later ones are of weights whose updates saw sums in another order
    assert metrics["mismatch_max"] == pytest.approx(json.loads((unbroken(1) / "metrics/rl.json").read_text())["mismatch_max"], rel=0.1)


@pytest.mark.slow
def test_a_lost_worker_is_one_line_and_the_next_run_goes_on_with_the_same_bits(tuned, shared, tmp_path):
    where = copy(tuned, tmp_path / "lost", generators=TWO)
    output = kill_a_worker(where, "spawn_main", "00000001-2-of-2.jsonl")
    assert "error: rl: generator 2 of 2 was lost (exit code -9) - run the stage again: it goes on from its last" in output, output
    kept = {path: path.stat().st_mtime_ns for path in (where / ".work/rl").glob("*/stages/*/rollouts/0000000[01]-*.jsonl")}
    assert len(kept) >= 2
    run("rl", where)
    same(where, shared)


@pytest.mark.slow
def test_two_workers_try_the_prompts_of_a_curriculum_between_them(tuned, tmp_path):
    where = copy(tuned, tmp_path / "curriculum", curriculum={"samples": 2, "drop_above": 1.0}, generators=TWO)
    kill_a_worker(where, "spawn_main", "00000000-1-of-2.jsonl")
    tried = [json.loads(path.read_text())["solved"] for path in (where / ".work/rl").glob("*/stages/*/rollouts/solved-*.json")]
    assert len(tried) == 2 and not set(tried[0]) & set(tried[1]) and len(tried[0]) == len(tried[1]) == 30


@pytest.mark.slow
def test_rays_actors_give_the_bits_of_processes_and_a_lost_one_is_one_line(tuned, shared, tmp_path):
    pytest.importorskip("ray", reason="ray is not in the lock")
    where = copy(tuned, tmp_path / "ray", generators=TWO | {"launcher": "ray"})
    output = kill_a_worker(where, "ray::_Actor", "00000001-2-of-2.jsonl")
    assert re.search(r"error: rl: generator [12] of 2 was lost \(its actor has died\) - run the stage again", output), output
    run("rl", where)
    same(where, shared)


def same(where, other):
    for name in ("model.safetensors", "rollouts.jsonl"):
        assert (where / "artifacts/aligned" / name).read_bytes() == (other / "artifacts/aligned" / name).read_bytes(), name
