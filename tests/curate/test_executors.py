"""The same steps on another executor give the same bytes. Slurm's commands are scripts that run the submitted arrays on this machine."""

import os
import signal
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

import pytest

from components.curate.reading.listing import File, list_files
from components.curate.shards import slurm
from components.curate.shards.plan import Shard, plan_shards
from components.curate.shards.run import run_shards
from components.curate.tiers.classifier import train
from components.curate.tiers.seeds import default_seeds
from stagecraft.contract.errors import UserError
from stagecraft.data.decontamination import EvaluationIndex
from tests.curate.test_stage import VALUES, parameters, prose

COMMANDS = {
    "sbatch": """
        for argument; do
            case $argument in --export=*) offset=${argument##*RUN_OFFSET=} ;; --*) ;; *) script=$argument ;; esac
        done
        job=$((100 + $(ls "$JOBS" | grep -c 'script$')))
        cp "$script" "$JOBS/$job.script"
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
        output=$(sed -n 's/^#SBATCH --output=//p' "$script")
        touch "$JOBS/$job.running"
        (for task in $(seq 0 "$last"); do
            log=${output/\\%A/$job}
            SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=localhost RUN_OFFSET=$offset bash "$JOBS/$job.script" > "${log/\\%a/$task}" 2>&1
        done; rm "$JOBS/$job.running") < /dev/null > /dev/null 2>&1 &
        echo "Submitted batch job $job"
    """,
    "squeue": """
        jobs=${*##*--jobs=}
        for job in ${jobs//,/ }; do [ -e "$JOBS/$job.running" ] && echo "$job" && found=1; done
        [ "$found" ] || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
    """,
    "srun": """while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done; exec "$@" """,
    "scontrol": """echo "$3" """,
    "scancel": """echo "$@" > "$JOBS/cancelled" """,
    "sacct": """echo FAILED""",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[Shard]:
    root = tmp_path_factory.mktemp("texts")
    for number in range(12):
        (root / f"doc{number:02d}.txt").write_text(prose(number) if number % 4 else "short")
    return plan_shards(list_files(str(root)), 3, "basis")


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    jobs, programs = tmp_path / "jobs", tmp_path / "bin"
    jobs.mkdir()
    programs.mkdir()
    for name, body in COMMANDS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("JOBS", str(jobs))
    monkeypatch.setattr(slurm, "_POLL", 0.2)
    monkeypatch.setattr(slurm, "_GRACE", 0.5)
    return jobs


def run(shards: list[Shard], results: Path, **changes) -> dict[str, bytes]:
    results.mkdir()
    train(default_seeds()).save(results / "classifier.npz")
    EvaluationIndex.build({"set": ["a question"]}).save(results / "evaluation.npz")
    assert run_shards(shards, results, parameters(**changes), results.with_name(f"{results.name}-logs"), lambda _: None) == len(shards)
    return {f"{shard.key}/{path.name}": path.read_bytes() for shard in shards for path in (results / shard.key).iterdir()}


def test_slurm_gives_the_bytes_of_one_process(shards, cluster, tmp_path):
    asked = {**VALUES["slurm"], "tasks_per_job": 2, "max_array_size": 1, "sbatch": {"account": "mine"}, "setup": "touch $JOBS/setup"}
    expected = run(shards, tmp_path / "local")
    assert len(shards) == 3 and len(expected) == 9
    assert run(shards, tmp_path / "slurm", executor="slurm", slurm=asked) == expected
    scripts = sorted(cluster.glob("*.script"))  # two arrays of one job, of two tasks and of one
    assert len(scripts) == 2 and (cluster / "setup").exists() and not (cluster / "cancelled").exists()
    assert {"#SBATCH --account=mine", "#SBATCH --partition=cpu", "#SBATCH --time=1:00:00", "#SBATCH --mem-per-cpu=2G",
            "#SBATCH --array=0-0%1"} <= set(scripts[0].read_text().split("\n"))
    assert "--qos" not in scripts[0].read_text()


def test_a_job_that_ends_without_results_is_told_with_its_log(shards, cluster, tmp_path):
    with pytest.raises(UserError) as caught:
        run(shards[:1], tmp_path / "slurm", executor="slurm", slurm={**VALUES["slurm"], "setup": "exit 3"})
    log = tmp_path / "slurm-logs" / "slurm_logs" / "100_0.out"
    assert str(caught.value).startswith(f"{log}: 1 of 1 shards have no result and their jobs have ended: FAILED - ")
    assert "Starting data processing job" in log.read_text()
    assert (cluster / "cancelled").read_text() == "100\n"


def test_a_silent_controller_is_no_end(cluster):
    assert not slurm._queued(["7"])
    (cluster.parent / "bin" / "squeue").write_text("#!/bin/bash\necho 'Socket timed out' >&2; exit 1\n")
    assert slurm._queued(["7"])


def test_a_refusal_and_a_missing_slurm_are_one_line(shards, cluster, tmp_path, monkeypatch):
    (cluster.parent / "bin" / "sbatch").write_text("#!/bin/bash\nexit 1\n")
    with pytest.raises(UserError, match=r"launch_script.slurm: sbatch refused the job with exit code 1, .*correct curate.slurm"):
        run(shards, tmp_path / "refused", executor="slurm")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"curate.executor: `sbatch` is not on the PATH"):
        run(shards, tmp_path / "missing", executor="slurm")


def test_without_ray_one_line_says_what_to_install(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="needs the package ray, which is not installed - install ray, or"):
        run(shards, tmp_path / "ray", executor="ray")


def test_ray_gives_the_bytes_of_one_process(shards, tmp_path):
    pytest.importorskip("ray", reason="ray is not in the lock")
    assert run(shards, tmp_path / "ray", executor="ray", workers=2) == run(shards, tmp_path / "local")


def test_a_worker_that_is_killed_ends_the_run_with_one_line_and_leaves_what_is_done(tmp_path):
    (tmp_path / "text.txt").write_text(prose(1))
    os.mkfifo(tmp_path / "endless.txt")  # who reads it waits until somebody writes
    made = [Shard(name, (File("input", f"{name}.txt", str(tmp_path / f"{name}.txt"), 1, "", "text"),)) for name in ("text", "endless")]
    results, ended = tmp_path / "results", Future()

    def work():
        try:
            ended.set_result(run(made, results, workers=2))
        except UserError as error:
            ended.set_exception(error)

    Thread(target=work, daemon=True).start()  # for a run that does not end, the test must
    try:
        while not ((results / "text").is_dir() and (at_work := list(results.glob(".endless.*.tmp")))):
            assert not ended.done(), ended.result()
            time.sleep(0.05)
        os.kill(int(at_work[0].name.split(".")[-2]), signal.SIGKILL)
        with pytest.raises(UserError, match="a worker was killed"):
            ended.result(timeout=20)
    finally:
        os.close(os.open(tmp_path / "endless.txt", os.O_RDWR))  # a worker that took it over would wait for ever
    assert (results / "text" / "tallies.json").is_file()
