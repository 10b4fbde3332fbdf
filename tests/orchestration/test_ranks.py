"""A task, its TrainJob and the job's ranks together: what the controllers would start is started here, as processes."""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.k8s.conftest import only
from tests.orchestration.conftest import copy
from tests.orchestration.fake_kubernetes import fake_kubernetes
from tests.orchestration.project import Project
from tests.orchestration.test_cluster import ROOT, run_on_shared
from tests.orchestration.test_train_jobs import JOB, OVERLAYS, TASK, build, created

# Rank 1 of the substitute stage: it leaves a word and ends.
WORKER = """
import os, sys
from pathlib import Path
Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
(Path(os.environ["SEEN"]) / "rank-1").write_text(f"{os.environ['WORLD_SIZE']} {Path.cwd()}")
"""


def kubelets(cluster, environment):
    """Start each node of the TrainJob as Trainer and its torch plugin would, and tell the server how it goes."""
    job = cluster.job(120)
    name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
    pods, nodes = [], []
    for node in range(trainer["numNodes"]):
        injected = {"PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": str(node),
                    "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": "29511"}
        given = {entry["name"]: entry["value"] for entry in trainer["env"]}
        pods.append(cluster.pod(name, node))
        nodes.append(subprocess.Popen(trainer["command"], env={**environment, **given, **injected}, cwd="/", text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT))

    def live(pod, node):
        for line in node.stdout:
            cluster.write(pod, line.rstrip("\n"))
        if pod in cluster.objects["pods"]:
            cluster.end(pod, node.wait())

    with ThreadPoolExecutor() as pool:
        list(pool.map(live, pods, nodes))
    if name in cluster.objects["trainjobs"]:
        cluster.condition(name, "Failed" if any(node.returncode for node in nodes) else "Complete")


@contextmanager
def served(directory):
    """A cluster, and what a task finds in its environment there."""
    manifests = build(OVERLAYS / "blackwell")
    with fake_kubernetes(only(manifests, "TrainingRuntime"), only(manifests, "Role", "pipelines"), directory) as (cluster, config):
        yield cluster, {"KUBECONFIG": str(config), "STAGECRAFT_TRAINJOB": json.dumps(JOB), "STAGECRAFT_TASK_CONFIG": json.dumps(TASK)}


def on_nodes(project, stage, directory):
    """Run a task of a stage on two nodes."""
    (project.root / "components" / stage / "worker.py").write_text(WORKER)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("STAGECRAFT_", "MLFLOW_"))}
    environment = {**clean, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "", "SEEN": str(directory),
                   "EXECUTED": str(project.root / "executed.log"), "STAGECRAFT_PARAMS": "params/super-120b.yaml"}
    with served(directory) as (cluster, task), ThreadPoolExecutor() as pool:
        playing = pool.submit(kubelets, cluster, environment)
        done = run_on_shared(project, stage, directory, **task)
        playing.result()
    return done, cluster


@pytest.fixture(scope="module")
def directory(fresh_project, tmp_path_factory):
    """Where pods hand over, with a corpus there."""
    made = tmp_path_factory.mktemp("cluster")
    (made / "store").mkdir()
    done = run_on_shared(copy(fresh_project, made / "curate"), "curate", made)
    assert done.returncode == 0, done.stdout + done.stderr
    return made


def test_a_stage_on_two_nodes_comes_back_to_dvc(fresh, directory, tmp_path):
    done, cluster = on_nodes(fresh, "pretrain", directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert fresh.executed() == ["pretrain"]  # once, by rank 0
    world, where = (directory / "rank-1").read_text().split()
    assert world == "2" and where.startswith(str(directory / "shared" / "pretrain-"))
    assert "counting 10/10" in done.stdout  # rank 0's progress
    assert cluster.wait(lambda: not cluster.objects["trainjobs"])
    assert not list((directory / "shared").glob("pretrain-*"))
    again = copy(fresh, tmp_path / "again")
    done = run_on_shared(again, "pretrain", directory)  # no TrainJob, and no rank, for what the remote has
    assert done.returncode == 0 and again.executed() == [], done.stdout + done.stderr


def test_a_mistake_of_rank_0_is_the_tasks(fresh, directory):
    fresh.edit("params.yaml", "amount: 2  # things to count\n  rate: 3e-4\n  fail: ''", "amount: 2\n  rate: 3e-4\n  fail: user")
    done, _ = on_nodes(fresh, "pretrain", directory)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: corpus.txt: nothing to read - write something into it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_that_ends_while_no_task_follows_it_is_not_started_again(fresh, directory, tmp_path):
    fresh.edit("params.yaml", "amount: 2 ", "amount: 22 ")
    with served(directory) as (cluster, task), ThreadPoolExecutor() as pool:
        lost = pool.submit(run_on_shared, fresh, "pretrain", directory, **task)
        name = cluster.job()["metadata"]["name"]
        clone = Project(directory / "shared" / name)
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if Path(process.cwd()) == clone.root:  # the task, DVC and the stage's command
                    process.kill()
        assert lost.result().returncode != 0
        rank = clone.run("components.pretrain", RANK="0", EXECUTED=str(fresh.root / "executed.log"))
        assert rank.returncode == 0, rank.stderr
        cluster.condition(name, "Complete")
        done = run_on_shared(fresh, "pretrain", directory, **task)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not cluster.objects["trainjobs"] and len(created(cluster)) == 1
    assert fresh.executed() == ["pretrain"]
    assert not clone.root.exists()
    again = copy(fresh, tmp_path / "again")
    done = run_on_shared(again, "pretrain", directory)  # the run cache has it, its curves and figures too
    assert done.returncode == 0 and again.executed() == [], done.stdout + done.stderr
