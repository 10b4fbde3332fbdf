"""The same pipeline on a cluster: what is submitted, what it compiles to, and what a task does in a pod of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

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


def run_pod(pod, stage, directory):
    (directory / "pod.py").write_text(POD)
    return pod.run("pod", stage, str(directory / "store"), PYTHONPATH=str(directory), STAGECRAFT_ROOT=str(pod.root),
                   STAGECRAFT_REMOTE=str(directory / "remote"))


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


def test_tasks_find_in_their_pods_what_the_manifests_put_there(fresh, tmp_path):
    """The names that a task asks for are those of k8s/base/pipelines; GPUs go to all but curation."""
    target = tmp_path / "pipeline.yaml"
    done = fresh.run("stagecraft.cli.kfp", "dsl", "compile", "--py", "pipelines/full.py", "--output", str(target), STAGECRAFT_GPUS="8")
    assert done.returncode == 0, done.stderr
    specification, platform = YAML(typ="safe").load_all(target.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    objects = {(item["kind"], item["metadata"]["name"]): item for item in build(ROOT / "k8s" / "overlays" / "hopper")
               if item["metadata"].get("namespace") == "kubeflow"}
    assert set(executors) == {f"exec-{name}" for name in STAGES}
    for name in STAGES:
        pod = executors[f"exec-{name}"]
        (settings,), (claim,) = pod["configMapAsEnv"], pod["pvcMount"]
        data = objects["ConfigMap", settings["configMapName"]]["data"]
        assert {(entry["configMapKey"], entry["envVar"]) for entry in settings["keyToEnv"]} == {(key, key) for key in data}
        assert ("PersistentVolumeClaim", claim["constant"]) in objects and claim["mountPath"] == data["STAGECRAFT_REMOTE"]
        assert pod["secretAsEnv"][0]["secretName"] == "mlflow-client"
        assert int(pod["securityContext"]["runAsUser"]) > 0 and pod["securityContext"]["runAsNonRoot"] is True
        labels = pod["podMetadata"]["labels"]
        assert labels["stagecraft.dev/stage"] == name and ("LocalQueue", labels["kueue.x-k8s.io/queue-name"]) in objects
        resources = specification["deploymentSpec"]["executors"][f"exec-{name}"]["container"].get("resources", {})
        assert resources.get("accelerator", {}).get("resourceCount") == (None if name == "curate" else "8")


def test_a_count_of_gpus_that_is_none_is_one_line(fresh):
    done = fresh.kfp("--endpoint", "http://127.0.0.1:1", STAGECRAFT_GPUS="many")
    assert done.returncode == 2 and "is no count of GPUs" in done.stderr and "Traceback" not in done.stderr
