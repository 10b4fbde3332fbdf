"""DVC remembers, whoever asked for the stage: what is unchanged is skipped, what a change touches runs again, and nothing else."""

import shutil
import subprocess

from stagecraft.contract import manifest, repository
from stagecraft.contract.stages import STAGES
from tests.orchestration.project import Project

ALL = list(STAGES)


def test_a_task_hands_dvc_no_other_profile(monkeypatch):
    """A pod's environment may name one; its parameters came with the task."""
    given = {}
    monkeypatch.setattr(subprocess, "run", lambda *_, env, **__: given.update(env) or subprocess.CompletedProcess([], 0))
    monkeypatch.setenv("STAGECRAFT_PARAMS", "params/super-120b.yaml")
    assert repository.dvc("repro") == 0
    assert "PATH" in given and "STAGECRAFT_PARAMS" not in given


def test_what_a_kfp_run_made_dvc_skips(finished):
    done = finished.dvc("repro")
    assert done.returncode == 0, done.stderr
    assert finished.executed() == []


def test_what_dvc_made_a_kfp_run_skips(fresh):
    assert fresh.dvc("repro").returncode == 0
    assert fresh.executed() == ALL
    done = fresh.kfp()
    assert done.returncode == 0, done.stdout + done.stderr
    assert fresh.executed() == []
    assert done.stdout.count("unchanged") == 7


def test_one_number_touches_its_stage_and_those_after_it(finished):
    finished.edit("params.yaml", "amount: 4 ", "amount: 40 ")
    assert "rl.amount" in finished.dvc("params", "diff").stdout
    assert finished.kfp().returncode == 0
    assert finished.executed() == ["rl", "quantize", "evaluate", "serve"]


def test_what_is_asked_of_a_cluster_makes_nothing_stale(finished):
    finished.edit("params.yaml", "memory: 8Gi ", "memory: 16Gi ")
    assert "up to date" in finished.dvc("status").stdout
    done = finished.kfp("cluster.sft.nodes=4")
    assert done.returncode == 0 and "params.yaml: cluster.sft.nodes: 1 -> 4" in done.stdout, done.stdout + done.stderr
    assert finished.executed() == []


def test_editing_a_stage_makes_it_stale_and_its_papers_do_not(finished):
    for name in ("README.md", "Containerfile", "component.py"):
        (finished.root / "components" / "sft" / name).write_text("# new\n")
    assert "up to date" in finished.dvc("status").stdout
    (finished.root / "components" / "sft" / "stage.py").open("a").write("\nCHANGED = True\n")
    status = finished.dvc("status").stdout
    assert "sft:" in status
    assert "pretrain:" not in status
    assert finished.dvc("repro", "-s", "sft").returncode == 0
    assert finished.executed() == ["sft"]


def test_a_remote_restores_another_clone_without_computing(finished, tmp_path):
    finished.dvc("remote", "add", "-d", "storage", str(tmp_path / "remote"))
    assert finished.dvc("push", "--run-cache").returncode == 0
    clone = Project(tmp_path / "clone")
    subprocess.run(["git", "clone", "-q", str(finished.root), str(clone.root)], check=True)
    clone.dvc("remote", "add", "-d", "storage", str(tmp_path / "remote"))
    done = clone.kfp()  # the clone has no dvc.lock: the remote's run cache knows what the stages computed
    assert done.returncode == 0, done.stdout + done.stderr
    assert clone.executed() == []
    assert clone.metrics("serve") == finished.metrics("serve")


def test_a_committed_lock_and_a_pull_restore_everything(finished, tmp_path):
    finished.dvc("remote", "add", "-d", "storage", str(tmp_path / "remote"))
    assert finished.dvc("push", "--run-cache").returncode == 0
    clone = Project(tmp_path / "clone")
    subprocess.run(["git", "clone", "-q", str(finished.root), str(clone.root)], check=True)
    shutil.copy(finished.root / "dvc.lock", clone.root / "dvc.lock")
    clone.dvc("remote", "add", "-d", "storage", str(tmp_path / "remote"))
    assert clone.dvc("pull", "--run-cache").returncode == 0
    assert "up to date" in clone.dvc("status").stdout
    assert clone.dvc("repro").returncode == 0
    assert clone.executed() == []
    assert manifest.verify(clone.root / "artifacts" / "serving")


def test_metrics_plots_and_parameters_are_shown(finished):
    shown = finished.dvc("metrics", "show").stdout
    assert all(f"metrics/{name}.json" in shown for name in ALL)
    assert finished.dvc("plots", "show").returncode == 0
    page = (finished.root / "dvc_plots" / "index.html").read_text()
    assert "Training loss" in page
    assert subprocess.run(["git", "check-ignore", "-q", "dvc_plots"], cwd=finished.root, check=False).returncode == 0


def test_a_killed_stage_goes_on_from_its_checkpoint(fresh):
    fresh.edit("params.yaml", "amount: 1  # things to count\n  rate: 3e-4\n  fail: ''", "amount: 1\n  rate: 3e-4\n  fail: kill")
    killed = fresh.dvc("repro", "-s", "curate")
    assert killed.returncode != 0
    done = fresh.dvc("repro", "-s", "curate")
    assert done.returncode == 0, done.stderr
    assert "resuming at 5" in done.stderr + done.stdout
    assert fresh.metrics("curate")["curve_points"] == 10  # steps 1-5 of the killed run, 6-10 of this one
