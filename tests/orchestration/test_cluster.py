"""The same pipeline on a cluster: what is submitted, what it compiles to, and what a task does in a pod of its own."""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stagecraft.cli import submit
from stagecraft.contract import kfp_task
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import read_profile
from stagecraft.contract.stages import PATHS, STAGES
from tests.k8s.kustomize import build
from tests.orchestration.conftest import copy
from tests.orchestration.fake_kfp import fake_kfp

ROOT = Path(__file__).parents[2]
MAKER = {output: stage.name for stage in STAGES.values() for output in stage.outputs}


def dependencies() -> dict[str, set[str]]:
    return {stage.name: {MAKER[name] for name in stage.inputs} for stage in STAGES.values()}


def check_specification(specification: dict) -> None:
    tasks = specification["root"]["dag"]["tasks"]
    assert {name: set(task.get("dependentTasks", ())) for name, task in tasks.items()} == dependencies()
    for name, task in tasks.items():
        inputs = task["inputs"]
        assert inputs["parameters"] == {"params": {"componentInputParameter": f"{name}_params"}}
        assert set(inputs.get("artifacts", ())) == set(STAGES[name].inputs)


def test_the_pipeline_is_submitted_with_its_seven_tasks_and_their_parameters(fresh):
    with fake_kfp() as (endpoint, received):
        done = fresh.kfp("rl.amount=44", "--endpoint", endpoint, "--watch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run-1: SUCCEEDED" in done.stdout
    (request,) = received
    specification = request["pipeline_spec"]
    specification = specification.get("pipeline_spec", specification)
    check_specification(specification)
    defaults = {name: json.loads(item["defaultValue"]) for name, item in specification["root"]["inputDefinitions"]["parameters"].items()}
    assert defaults["rl_params"] == {"amount": 44, "rate": 3e-4, "fail": ""}
    assert set(defaults) == {f"{name}_params" for name in STAGES}
    assert fresh.executed() == []


def test_a_server_for_several_users_is_told_whose_run_it_is(fresh):
    with fake_kfp(namespace="team") as (endpoint, received):
        done = fresh.kfp("--endpoint", endpoint)
        assert done.returncode == 2 and not received, done.stdout + done.stderr
        assert done.stderr.splitlines()[-1] == (
            f"error: {endpoint}: the server refuses the run (HTTP 400): Invalid input error: In multi-user mode, namespace must be "
            "specified - mend what it says; a server for several users wants a --namespace of theirs")
        done = fresh.kfp("--endpoint", endpoint, "--namespace", "team")
    assert done.returncode == 0 and len(received) == 1, done.stdout + done.stderr


@pytest.mark.parametrize(("answers", "status", "outages"), [
    (["PENDING", "CANCELING", "CANCELED"], 1, 0), (["FAILED"], 1, 0), (["SKIPPED"], 1, 0),
    ([0, 503, 0, "RUNNING", 429, "SUCCEEDED"], 0, 2)])
def test_a_run_is_watched_to_whatever_end_it_has(monkeypatch, capsys, answers, status, outages):
    monkeypatch.setattr(submit, "_POLL_SECONDS", 0.01)
    with fake_kfp(answers) as (endpoint, _):
        assert submit.watch(endpoint, None, "run-1") == status
    out = capsys.readouterr().out
    assert out.endswith(f"run run-1: {answers[-1]}\n") and out.count("does not answer") == outages


def test_a_run_that_is_watched_no_longer_is_one_line():
    with fake_kfp([401]) as (endpoint, _), pytest.raises(UserError, match=r"no more of run run-1 \(HTTP 401\) - the run goes on"):
        submit.watch(endpoint, "expired", "run-1")


def test_the_endpoint_may_come_from_the_environment(fresh):
    with fake_kfp() as (endpoint, received):
        done = fresh.kfp(KFP_ENDPOINT=endpoint)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(received) == 1


@pytest.mark.parametrize("pipeline", ["full", "post_training"])
def test_stock_kfp_compiles_the_pipeline(fresh, tmp_path, pipeline):
    from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

    target = tmp_path / "pipeline.yaml"
    done = fresh.run("stagecraft.cli.kfp", "dsl", "compile", "--py", f"pipelines/{pipeline}.py", "--output", str(target))
    assert done.returncode == 0, done.stderr
    specification = YAML(typ="safe").load(target.read_text().split("\n---\n")[0])
    if pipeline == "full":
        check_specification(specification)
    from google.protobuf import json_format

    assert json_format.ParseDict(specification, PipelineSpec()).pipeline_info.name.startswith("stagecraft-")


@pytest.mark.parametrize("bases", [[], ["base_uri=s3://bucket/base"]])
def test_what_lies_on_this_machine_is_not_imported_on_a_cluster(fresh, bases):
    with fake_kfp() as (endpoint, received):
        done = fresh.run("stagecraft.cli.kfp", "run", "pipelines/post_training.py", *bases, "sft.amount=31", "--endpoint", endpoint)
        assert done.returncode == 2 and not received, done.stdout + done.stderr
        assert "error: corpus_uri=artifacts/corpus: a cluster imports from addresses" in done.stderr
        assert "amount: 31" not in (fresh.root / "params.yaml").read_text()
        done = fresh.run("stagecraft.cli.kfp", "run", "pipelines/post_training.py", "base_uri=s3://bucket/base",
                         "corpus_uri=s3://bucket/corpus", "--endpoint", endpoint)
    assert done.returncode == 0 and len(received) == 1, done.stdout + done.stderr


POD = """
import json, sys
from kfp import dsl
from stagecraft.contract.kfp_task import run_task, section
from stagecraft.contract.stages import STAGES
name, store = sys.argv[1], sys.argv[2]
def artifact(key):
    made = dsl.Artifact(name=key, uri=f"{store}/{key}")
    return made
inputs = {}
for key in STAGES[name].inputs:
    inputs[key] = artifact(key)
    inputs[key].metadata = json.load(open(f"{store}/{key}.metadata.json"))
outputs = {key: artifact(key) for key in STAGES[name].outputs}
run_task(name, section(name), inputs=inputs, outputs=outputs)
for key, made in outputs.items():
    json.dump(made.metadata, open(f"{store}/{key}.metadata.json", "w"))
"""


def test_pods_hand_over_through_the_remote(fresh_project, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    for name in ("curate", "pretrain", "sft"):
        pod = copy(fresh_project, tmp_path / name)  # every pod starts from a bare checkout
        done = run_pod(pod, name, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert pod.executed() == [name]
        assert (store / STAGES[name].outputs[0] / "manifest.json").is_file()
        assert not (store / STAGES[name].outputs[0] / "weights.bin").exists()  # the bytes travel through DVC's remote
    again = copy(fresh_project, tmp_path / "again")
    done = run_pod(again, "sft", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert again.executed() == []
    assert (again.root / PATHS["sft"] / "weights.bin").is_file()


def run_pod(pod, stage, directory, **environment):
    (directory / "pod.py").write_text(POD)
    return pod.run("pod", stage, str(directory / "store"), PYTHONPATH=str(directory), STAGECRAFT_ROOT=str(pod.root),
                   STAGECRAFT_REMOTE=str(directory / "remote"), **environment)


def test_post_training_starts_from_a_base_that_lies_elsewhere(finished, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (finished.root / "artifacts" / "base").rename(elsewhere)
    done = finished.run("stagecraft.cli.kfp", "run", "pipelines/post_training.py", f"base_uri={elsewhere}", "sft.amount=31")
    assert done.returncode == 0, done.stdout + done.stderr
    assert finished.executed() == ["sft", "rl", "quantize", "evaluate", "serve"]


def test_stock_commands_still_reach_kfp():
    shown = subprocess.run([sys.executable, "-m", "stagecraft.cli.kfp", "--help"], capture_output=True, text=True, check=True).stdout
    for command in ("pipeline", "experiment", "recurring-run", "component", "dsl", "run"):
        assert command in shown


def compile_full(root, profile, **environment):
    """The pipeline's two documents, compiled by stock KFP from a profile."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("STAGECRAFT_", "KFP_"))}
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [sys.executable, "-m", "stagecraft.cli.kfp", "dsl", "compile", "--py", "pipelines/full.py", "--output", f"{scratch}/p.yaml"],
            cwd=root, capture_output=True, text=True, env={**plain, "STAGECRAFT_PARAMS": str(profile), **environment})
        assert done.returncode == 0, done.stderr
        return list(YAML(typ="safe").load_all(Path(scratch, "p.yaml").read_text()))


def changed_profile(directory):
    """The laptop's, with something of everything that a cluster may be asked."""
    yaml = YAML()
    profile = yaml.load(ROOT / "params.yaml")
    profile["cluster"]["rl"].update(
        image="registry.example.com/ours:7", cpu="500m", gpu={"type": "amd.com/gpu", "count": 3}, shared_memory="3Gi",
        node_selector={"disk": "fast", "zone": "b"}, priority="background", retries={"count": 0, "pause_seconds": 1},
        tolerations=[{"key": "spot", "operator": "Equal", "value": "yes", "effect": "NoExecute"}],
        secrets={"endpoint": {"token": "ENDPOINT_TOKEN"}}, environment={"NCCL_DEBUG": "INFO"}, timeout_seconds=77)
    path = directory / "changed.yaml"
    yaml.dump(profile, path)
    return path


@pytest.mark.parametrize("profile", ["params.yaml", "params/super-120b.yaml", "changed"])
def test_every_task_carries_what_the_profile_asks(tmp_path, profile):
    """Read from the profile and from the compiled pipeline, by Kubernetes' and KFP's names."""
    path = changed_profile(tmp_path) if profile == "changed" else ROOT / profile
    specification, platform = compile_full(ROOT, path, STAGECRAFT_REGISTRY="registry.example.com/stagecraft", STAGECRAFT_TAG="1.2.3")
    asked = YAML(typ="safe").load(path)["cluster"]
    assert set(asked) == set(STAGES)
    for name, entry in asked.items():
        container = specification["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
        pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{name}"]
        task = specification["root"]["dag"]["tasks"][name]
        assert task["cachingOptions"].get("enableCache", False) is False  # also where somebody else submits what was compiled
        assert container["image"] == (entry["image"] or f"registry.example.com/stagecraft/stagecraft-{name}:1.2.3")
        resources = container["resources"]
        assert resources["resourceCpuRequest"] == resources["resourceCpuLimit"] == str(entry["cpu"])
        assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"] == entry["memory"]
        gpu = entry["gpu"]
        accelerator = resources.get("accelerator", {})
        assert (accelerator.get("resourceType"), accelerator.get("resourceCount")) == (
            (gpu["type"], str(gpu["count"])) if gpu["count"] else (None, None))
        assert pod["emptyDirMounts"] == [{"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory",
                                          "sizeLimit": entry["shared_memory"]}]
        assert pod.get("nodeSelector", {}).get("labels", {}) == entry["node_selector"]
        assert [{"value": "", **taint} for taint in pod.get("tolerations", [])] == entry["tolerations"]
        assert pod["podMetadata"]["labels"]["kueue.x-k8s.io/priority-class"] == entry["priority"]
        assert int(pod["activeDeadlineSeconds"]) == entry["timeout_seconds"]
        retries = task.get("retryPolicy", {"maxRetryCount": 0})
        assert retries["maxRetryCount"] == entry["retries"]["count"]
        assert retries["maxRetryCount"] == 0 or retries["backoffDuration"] == f"{entry['retries']['pause_seconds']}s"
        if count := retries["maxRetryCount"]:  # Argo starts and ends them by a clock that runs from the first pod on, in the queue too
            longest = (count + 1) * entry["timeout_seconds"] + (2**count - 1) * entry["retries"]["pause_seconds"]
            assert int(retries["backoffMaxDuration"].removesuffix("s")) > 2 * longest
        secrets = {secret["secretName"]: {key["secretKey"]: key["envVar"] for key in secret["keyToEnv"]} for secret in pod["secretAsEnv"]}
        assert secrets == {"mlflow-client": {"username": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"},
                           **entry["secrets"]}
        environment = {item["name"]: item["value"] for item in container.get("env", ())}
        job = environment.pop("STAGECRAFT_TRAINJOB", None)
        assert environment == entry["environment"]
        passed = {field["field"]: field.get("applyToTask", False)
                  for field in specification["components"][f"comp-{name}"].get("taskConfigPassthroughs", ())}
        if entry["nodes"] == 1:
            assert job is None and passed == {}
        else:  # the task itself only waits: it takes no node's place, but runs where its image does
            assert passed == {"RESOURCES": False, "KUBERNETES_TOLERATIONS": True, "KUBERNETES_NODE_SELECTOR": False, "ENV": True,
                              "KUBERNETES_VOLUMES": True, "KUBERNETES_AFFINITY": True}
            (affinity,) = pod["nodeAffinity"]
            assert affinity == {"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["arm64"]}]}
            assert json.loads(job) == {"nodes": entry["nodes"], "image": container["image"], "shared_memory": entry["shared_memory"],
                                       "priority": entry["priority"], "timeout_seconds": entry["timeout_seconds"]}
    assert (profile == "params/super-120b.yaml") == (asked["pretrain"]["nodes"] > 1)


def test_tasks_find_in_their_pods_what_the_manifests_put_there(fresh):
    """The names that a task asks for are those of k8s/base/pipelines."""
    _, platform = compile_full(fresh.root, "params.yaml")
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    objects = {(item["kind"], item["metadata"]["name"]): item for item in build(ROOT / "k8s" / "overlays" / "hopper")
               if item["metadata"].get("namespace") == "kubeflow"}
    assert set(executors) == {f"exec-{name}" for name in STAGES}
    for name in STAGES:
        pod = executors[f"exec-{name}"]
        (settings,) = pod["configMapAsEnv"]
        data = objects["ConfigMap", settings["configMapName"]]["data"]
        assert {(entry["configMapKey"], entry["envVar"]) for entry in settings["keyToEnv"]} == {(key, key) for key in data}
        assert [claim["mountPath"] for claim in pod["pvcMount"]] == [data["STAGECRAFT_REMOTE"], data["STAGECRAFT_SHARED"]]
        assert all(("PersistentVolumeClaim", claim["constant"]) in objects for claim in pod["pvcMount"])
        assert int(pod["securityContext"]["runAsUser"]) > 0 and pod["securityContext"]["runAsNonRoot"] is True
        labels = pod["podMetadata"]["labels"]
        assert labels["stagecraft.dev/stage"] == name and ("LocalQueue", labels["kueue.x-k8s.io/queue-name"]) in objects


def test_a_pipeline_for_this_machine_asks_for_nothing():
    specification, *platform = compile_full(ROOT, "params/super-120b.yaml", STAGECRAFT_RUNNER="local")
    assert platform == []
    for name in STAGES:
        assert not {"resources", "env"} & specification["deploymentSpec"]["executors"][f"exec-{name}"]["container"].keys()
        assert "retryPolicy" not in specification["root"]["dag"]["tasks"][name]
        assert "taskConfigPassthroughs" not in specification["components"][f"comp-{name}"]


def test_a_run_on_this_machine_is_not_retried(fresh):
    fresh.edit("params.yaml", "fail: ''\nsft", "fail: crash\nsft")
    assert fresh.kfp().returncode == 1
    assert fresh.executed() == ["curate", "pretrain"]


def run_on_shared(pod, stage, directory, **environment):
    return run_pod(pod, stage, directory, STAGECRAFT_SHARED=str(directory / "shared"), EXECUTED=str(pod.root / "executed.log"),
                   **environment)


def test_another_pod_goes_on_where_one_was_lost(fresh_project, tmp_path):
    """The clone outlives the pod, checkpoints in it, and what one changes after a kill is no other work; once it is pushed it goes."""
    (tmp_path / "store").mkdir()
    lost, second = copy(fresh_project, tmp_path / "lost"), copy(fresh_project, tmp_path / "second")
    for pod in (lost, second):
        pod.edit("params.yaml", "amount: 1  # things to count\n  rate: 3e-4\n  fail: ''", "amount: 1\n  rate: 3e-4\n  fail: kill")
    assert run_on_shared(lost, "curate", tmp_path).returncode == 1
    (clone,) = (tmp_path / "shared").glob("curate-*")
    (clone / ".dvc" / "tmp").mkdir(exist_ok=True)
    (clone / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({str(clone / "artifacts" / "corpus"): {"write": {"pid": 1, "cmd": "dvc"}}}))
    second.edit("params.yaml", "fail: kill", "fail: kill\n  hang_seconds: 1200")
    done = run_on_shared(second, "curate", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming at 5" in done.stdout + done.stderr
    assert not list((tmp_path / "shared").glob("curate-*"))
    third = copy(second, tmp_path / "third")
    third.executed()
    done = run_on_shared(third, "curate", tmp_path)  # submitted again: restored from the remote
    assert done.returncode == 0 and third.executed() == [], done.stdout + done.stderr


@pytest.mark.parametrize("whole", [True, False])
def test_what_a_stage_has_finished_before_dvc_was_killed_is_recorded(fresh, tmp_path, whole):
    """DVC removes a stage's outputs before it runs it; hashing terabytes takes hours, in which a kill may come."""
    (tmp_path / "store").mkdir()
    assert fresh.run("components.curate").returncode == 0
    (fresh.root / ".work" / "curate.begun").touch()
    if not whole:
        (fresh.root / PATHS["corpus"] / "weights.bin").write_text("half of it")
    done = run_pod(fresh, "curate", tmp_path, STAGECRAFT_RUNNER="local")
    assert done.returncode == 0, done.stdout + done.stderr
    assert fresh.executed() == (["curate"] if whole else ["curate", "curate"])
    assert fresh.dvc("status", "curate").stdout.startswith("Data and pipelines are up to date")
    assert not (fresh.root / ".work" / "curate.begun").exists()


def test_a_task_that_takes_over_leaves_what_ranks_read_as_it_is(fresh_project, tmp_path, monkeypatch):
    """A job that a lost task has left running starts its ranks in the clone: no module, nor the task's parameters, may ever be missing."""
    image = copy(fresh_project, tmp_path / "image").root
    (image / "stagecraft" / "new").mkdir()
    (image / "stagecraft" / "new" / "module.py").touch()
    monkeypatch.setenv("STAGECRAFT_ROOT", str(image))
    monkeypatch.setenv("STAGECRAFT_SHARED", str(tmp_path / "shared"))
    params = read_profile(ROOT / "params.yaml")["curate"] | {"seed": 77}

    def look():
        """The files of the clone before its task has done anything, each known by inode and time."""
        with suppress(InterruptedError), kfp_task._tree("curate", params, {}) as tree:
            found = {path.relative_to(tree).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
                     for part in ("components", "stagecraft", "params.yaml", "dvc.yaml")
                     for path in (tree / part, *(tree / part).rglob("*")) if path.is_file()}
            assert read_profile(tree / "params.yaml")["curate"] == params
            (tree / "stagecraft" / "gone").mkdir(exist_ok=True)
            (tree / "stagecraft" / "gone" / "module.py").touch()
            raise InterruptedError  # the task is lost
        return found

    before = look()
    assert before.keys() > {"stagecraft/new/module.py", "components/curate/stage.py", "params.yaml", "dvc.yaml"}
    assert look() == before
    (image / "stagecraft" / "new" / "module.py").write_text("now = 1")
    (image / "dvc.yaml").write_text("stages: {}")
    after = look()
    assert {name for name in after if after[name] != before.get(name)} == {"stagecraft/new/module.py", "dvc.yaml"}
    assert after.keys() == before.keys()


def test_two_pods_with_the_same_work_take_turns(fresh_project, tmp_path):
    (tmp_path / "store").mkdir()
    pods = [copy(fresh_project, tmp_path / name) for name in ("first", "second")]
    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda pod: run_on_shared(pod, "curate", tmp_path), pods))
    assert [done.returncode for done in ended] == [0, 0], [done.stdout + done.stderr for done in ended]
    assert sorted(pod.executed() for pod in pods) == [[], ["curate"]]
    assert sum("is at work in another pod" in done.stdout for done in ended) == 1
