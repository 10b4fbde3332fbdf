"""Stages in their images, on a root nobody can write to, without capabilities: what they write is where a pod has a volume."""

import json
import os

import pytest
from ruamel.yaml import YAML

from stagecraft.contract.params import read_profile
from stagecraft.contract.stages import PATHS
from tests.images.engine import locked, need_images

TASK = """
import json, sys
from kfp import dsl
from stagecraft.contract.kfp_task import run_task, section
output = dsl.Dataset(name="corpus", uri="/scratch/kfp/corpus")
run_task("curate", open("/params.json").read(), outputs={"corpus": output})
print(json.dumps(output.metadata))
"""
# What the training runtime mounts below the image's tree (k8s/base/stagecraft/training).
WRITTEN = (".work", "artifacts", "metrics", "plots")


@pytest.fixture
def small() -> dict:
    """The laptop's profile with little text."""
    need_images()
    profile = read_profile()
    profile["curate"].update(sample_bytes=600000, shards=1, workers=1, tokenizer_bytes=200000)
    profile["curate"]["synthetic"].update(documents={}, sft_rows=2, rl_rows=2)
    profile["curate"]["tasks"].update(sft_rows=60, rl_rows=60, heldout_rows=60)
    for phase, tokens in (("phase1", 20000), ("phase2", 5000)):
        profile["curate"]["blend"][phase]["tokens"] = tokens
    return profile


def test_a_stage_as_training_runs_it(small, tmp_path):
    with open(tmp_path / "params.yaml", "w") as stream:
        YAML(typ="safe").dump(small, stream)
    volumes = ["--volume", f"{tmp_path}/params.yaml:/params.yaml:ro", "--env", "STAGECRAFT_PARAMS=/params.yaml",
               "--env", "MLFLOW_TRACKING_URI="]
    for name in WRITTEN:
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, 1000, 1000)
        volumes += ["--volume", f"{tmp_path / name}:/opt/stagecraft/{name}"]
    done = locked("curate", ["python", "-m", "components.curate"], *volumes)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Read-only file system" not in done.stderr and "Permission denied" not in done.stderr
    made = tmp_path / PATHS["corpus"] / "manifest.json"
    assert json.loads(made.read_text())["digest"] and made.stat().st_uid == 1000


def test_a_task_as_a_pod_of_kubeflow_runs_it(small, tmp_path):
    """Nothing of the image's tree is writable: DVC works on a copy, and pushes to the remote."""
    (tmp_path / "params.json").write_text(json.dumps(small["curate"]))
    (tmp_path / "remote").mkdir()
    os.chown(tmp_path / "remote", 1000, 1000)
    done = locked("curate", ["python", "-c", TASK], "--volume", f"{tmp_path}/params.json:/params.json:ro",
                  "--volume", f"{tmp_path}/remote:/remote", "--env", "STAGECRAFT_REMOTE=/remote", "--env", "MLFLOW_TRACKING_URI=")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["dvc_path"] == PATHS["corpus"].as_posix() and "curate" in json.loads(told["dvc_lock"])
    assert any((tmp_path / "remote").rglob("*.dir"))


@pytest.mark.parametrize(("stage", "finds"), [("curate", "no g++"), ("pretrain", "g++"), ("serve", "g++")])
def test_what_is_inside(stage, finds):
    """A compiler where kernels are compiled at run time, what megatron compiles (it says nothing when it cannot), no tests, no history,
    no code that a stage may change."""
    need_images()
    script = ("command -v g++ >/dev/null && echo g++ || echo no g++; id -u; "
              "python -c 'import pytest' 2>/dev/null && echo pytest; find /opt/stagecraft/stagecraft -writable | head -1; "
              "ls -a /opt/stagecraft | grep -xE '[.]git|tests|k8s'; "
              "ls /opt/stagecraft/.venv/lib/python3*/site-packages/megatron/core/datasets/helpers_cpp*.so | wc -l")
    done = locked(stage, ["sh", "-c", script])
    assert done.stdout.split("\n") == [finds, "1000", "1", ""], done.stdout + done.stderr


@pytest.mark.parametrize("stage", ["rl", "evaluate", "serve"])
def test_the_kernels_of_vllm_load(stage):
    """vLLM takes the library that fits the processor, only warns when it does not load, and fails at the first step."""
    need_images()
    code = ("import torch; from vllm.platforms import current_platform; current_platform.import_kernels(); "
            "print(torch.ops._C.rms_norm, torch.ops._C.cpu_attention_with_kv_cache)")
    done = locked(stage, ["python", "-c", code])
    assert done.returncode == 0, done.stderr[-3000:]


def test_kernels_are_compiled_on_scratch():
    need_images()
    code = ("import torch; from stagecraft.numerics import backend, nvfp4\n"
            "with backend.use('compiled'): print(nvfp4.quantize_dequantize(torch.randn(32, 64)).shape)")
    done = locked("pretrain", ["python", "-c", code])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "32, 64" in done.stdout
