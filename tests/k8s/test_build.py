"""Every overlay builds, and to what the real kustomize makes of it."""

import shutil
import subprocess

import pytest
import yaml

from tests.k8s.conftest import OVERLAYS, ROOT
from tests.k8s.kustomize import build, identity

COMMAND = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]


def test_there_is_an_overlay_a_generation():
    assert OVERLAYS == ["blackwell", "hopper"]


def test_overlays_build(objects):
    assert {item["metadata"].get("namespace") for item in objects} == {None, "stagecraft", "kubeflow", "monitoring"}


@pytest.mark.skipif(not shutil.which(COMMAND[0]), reason="neither kustomize nor kubectl is installed")
def test_kustomize_builds_the_same(overlay, objects):
    made = subprocess.run([*COMMAND, f"k8s/overlays/{overlay}"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert made.stderr == ""
    theirs = {identity(item): item for item in yaml.safe_load_all(made.stdout)}
    assert theirs == {identity(item): item for item in objects}


@pytest.mark.parametrize("line, message", [
    ("commonLabels: {a: b}", "knows nothing of"), ("resources: [a.yaml, a.yaml]", "twice"), ("namePrefix: x-", "knows nothing of"),
])
def test_what_the_builder_does_not_know_is_an_error(tmp_path, line, message):
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n")
    (tmp_path / "kustomization.yaml").write_text(f"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n{line}\n")
    with pytest.raises(AssertionError, match=message):
        build(tmp_path)
