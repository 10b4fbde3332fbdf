"""Every object of every overlay against the schema of its kind, with unknown fields refused."""

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
from kubeflow_trainer_api.models.trainer_v1alpha1_training_runtime import TrainerV1alpha1TrainingRuntime

from tests.k8s import crds

# The oldest and the newest Kubernetes that the operators run on: Kueue counts NVLink channels from 1.34 on.
VERSIONS = ("1.34", "1.37")
WRITTEN = crds.written()
DEFINITIONS = os.environ.get("STAGECRAFT_CRDS")
published = pytest.mark.skipif(not DEFINITIONS, reason="STAGECRAFT_CRDS names no CustomResourceDefinitions (tests/k8s/schemas/README.md)")


def own(item: dict) -> bool:
    """Whether a kind is Kubernetes' own, not an operator's."""
    group = item["apiVersion"].rpartition("/")[0]
    return "." not in group or (group.endswith(".k8s.io") and not group.endswith(".x-k8s.io"))


def templates(item: dict) -> Iterator[dict]:
    """The objects of Kubernetes' own that a custom resource holds."""
    if item["kind"] == "LeaderWorkerSet":
        yield {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"},
               "template": item["spec"]["leaderWorkerTemplate"]["workerTemplate"]}
    if item["kind"] == "TrainingRuntime":
        for job in item["spec"]["template"]["spec"]["replicatedJobs"]:
            yield {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x", **job["template"]["metadata"]},
                   "spec": job["template"]["spec"]}


def test_every_object_has_a_schema(objects):
    assert {item["kind"] for item in objects if not own(item)} <= {*WRITTEN, "TrainingRuntime"}


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_own_objects(objects, version):
    checked = [kubernetes_validate.validate(item, version, strict=True)
               for item in [*filter(own, objects), *(part for item in objects for part in templates(item))]]
    assert len(checked) > 30 and set(checked) == {version}


def test_custom_resources(objects):
    for item in objects:
        if not own(item) and item["kind"] in WRITTEN:
            crds.check(item, WRITTEN[item["kind"]])


def test_training_runtimes_come_back_whole(objects):
    """Trainer's models drop what they do not know without a word."""
    runtimes = [item for item in objects if item["kind"] == "TrainingRuntime"]
    assert runtimes
    for item in runtimes:
        assert TrainerV1alpha1TrainingRuntime.from_dict(item).to_dict() == item


def test_a_slip_of_the_pen_is_refused(objects):
    """The checks above can fail: one letter more in a field of each kind does it."""
    for item in objects:
        broken = copy.deepcopy(item)
        field = next((key for key in broken if key not in ("apiVersion", "kind", "metadata")), "metadata")
        if own(item):
            broken[f"{field}x"] = broken.pop(field)
            with pytest.raises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)
        elif item["kind"] in WRITTEN:
            if "spec" in broken:
                broken["spec"]["fieldx"] = next(iter(broken["spec"].values()), None)
            else:
                broken["fieldx"] = broken[field]
            with pytest.raises(jsonschema.ValidationError):
                crds.check(broken, WRITTEN[item["kind"]])
        elif item["kind"] == "TrainingRuntime":
            broken["spec"]["mlPolicyx"] = broken["spec"].pop("mlPolicy")
            assert TrainerV1alpha1TrainingRuntime.from_dict(broken).to_dict() != broken


@published
def test_custom_resources_against_the_published_definitions(objects):
    definitions = crds.published(Path(DEFINITIONS))
    for item in (item for item in objects if not own(item)):
        schema = crds.strict(definitions[item["apiVersion"], item["kind"]])
        schema["properties"]["metadata"] = {"type": "object"}
        crds.check(item, schema)


@published
def test_written_schemas_say_what_the_published_ones_say(objects):
    definitions = crds.published(Path(DEFINITIONS))
    for kind, version in {item["kind"]: item["apiVersion"] for item in objects if item["kind"] in WRITTEN}.items():
        agree(WRITTEN[kind], definitions[version, kind], kind)


def agree(ours: dict, theirs: dict, where: str) -> None:
    """Every field written is published with the same type and values, and what is published as required is required here."""
    assert where.count(".") == 0 or ours.get("type") == theirs.get("type") or ours.get("x-kubernetes-int-or-string"), where
    assert bool(ours.get("x-kubernetes-int-or-string")) == bool(theirs.get("x-kubernetes-int-or-string")), where
    if "enum" in ours:
        assert set(ours["enum"]) == set(theirs["enum"]), where
    if "properties" in ours:
        assert set(theirs.get("required", ())) & set(ours["properties"]) <= set(ours.get("required", ())), where
        for key, value in ours["properties"].items():
            if key not in ("metadata", "workerTemplate"):
                agree(value, theirs["properties"][key], f"{where}.{key}")
    if "items" in ours:
        agree(ours["items"], theirs["items"], f"{where}[]")
