"""The TrainJob that a task wants: what KFP's TaskConfig and the profile ask, laid over the training runtime of the cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kubeflow.trainer import CustomTrainerContainer
from kubeflow.trainer.options import kubernetes as patch
from kubeflow.trainer.options.common import Name
from kubeflow.trainer.options.kubernetes import ActiveDeadlineSeconds, Annotations, Labels, TrainerCommand
from kubernetes.utils.quantity import parse_quantity

from stagecraft.contract.cluster import TASK_VARIABLE, TRAINJOB_VARIABLE, Job
from stagecraft.contract.errors import UserError
from stagecraft.contract.events import VARIABLE as EVENTS_VARIABLE
from stagecraft.contract.files import digest_of

# Names in k8s/base/stagecraft: of the runtime's job, of its container, and of the volume behind /dev/shm; of Kueue's queue.
NODE = "node"
SHM = "shm"
QUEUE = "training"
ASKED = "stagecraft.dev/asked"  # annotation: digest of what the job was asked to be
# Of the task's own environment, what its ranks need; the rest they have from the runtime.
_HANDED_ON = (EVENTS_VARIABLE, "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "STAGECRAFT_PARENT_RUN")


def wanted(name: str, stage: str, job: Job, task: Mapping[str, Any], runtime: Mapping[str, Any], tree: Path,
           params: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the kubeflow SDK's `train`, `runtime` apart.

    Args:
        name: of the TrainJob.
        task: KFP's TaskConfig as plain data.
        runtime: the TrainingRuntime as plain data.
        tree: the task's clone, at the same path on every node.
        params: the stage's section of the profile. Not all of it is in the clone's name: a job that runs with another watchdog or another
            layout is another job, which goes on with the same work.

    Raises:
        UserError: the task and the runtime do not fit together.
    """
    trainer = {"image": job.image, "num_nodes": job.nodes, "resources_per_node": _resources(task, runtime), "env": _environment(task)}
    spec = patch.PodSpecPatch(
        node_selector=task.get("node_selector"), tolerations=task.get("tolerations"),
        volumes=[{"name": SHM, "emptyDir": {"medium": "Memory", "sizeLimit": job.shared_memory}}])
    labels = {"kueue.x-k8s.io/queue-name": QUEUE, "kueue.x-k8s.io/priority-class": job.priority, "stagecraft.dev/stage": stage}
    command = ["env", "-C", str(tree), "python", "-m", "stagecraft.engine.torchrun", "-m", f"components.{stage}"]
    # The diary's run is another one for every try; it does not make the job another.
    asked = digest_of([trainer | {"env": {}}, asdict(spec), job.timeout_seconds, command, params])
    return {
        "trainer": CustomTrainerContainer(**trainer),
        "options": [
            Name(name), Labels(labels), Annotations({ASKED: asked}), TrainerCommand(command), ActiveDeadlineSeconds(job.timeout_seconds),
            patch.RuntimePatch(patch.TrainingRuntimeSpecPatch(patch.JobSetTemplatePatch(spec=patch.JobSetSpecPatch([
                patch.ReplicatedJobPatch(NODE, patch.JobTemplatePatch(spec=patch.JobSpecPatch(patch.PodTemplatePatch(spec=spec))))])))),
        ],
    }


def _environment(task: Mapping[str, Any]) -> dict[str, str]:
    """Plain values of the profile, and what of this process the ranks need. References to Secrets and ConfigMaps are the runtime's."""
    own = {TRAINJOB_VARIABLE, TASK_VARIABLE}
    asked = {entry["name"]: entry["value"] for entry in task.get("env") or () if entry.get("value") and entry["name"] not in own}
    return {**asked, "STAGECRAFT_PARAMS": "params.yaml", **{name: os.environ[name] for name in _HANDED_ON if os.environ.get(name)}}


def _resources(task: Mapping[str, Any], runtime: Mapping[str, Any]) -> dict[str, str] | None:
    """Sizes of a node where they are not the runtime's own: what is not named, such as RDMA devices, Trainer takes from there."""
    asked = (task.get("resources") or {}).get("limits")
    if not asked:
        raise UserError("the task was handed no resources", where="TaskConfig", mend="run Kubeflow Pipelines 2.15 or later")
    (pod,) = [job["template"]["spec"]["template"]["spec"] for job in runtime["spec"]["template"]["spec"]["replicatedJobs"]
              if job["name"] == NODE]
    (container,) = [container for container in pod["containers"] if container["name"] == NODE]
    has = container.get("resources", {})
    given = has.get("limits", {})
    differ = [key for key, value in asked.items() if key not in given or parse_quantity(given[key]) != parse_quantity(value)]
    if differ and has.get("claims"):  # Trainer 2.3.0 keeps none when it merges sizes (pkg/runtime/core/trainingruntime.go)
        found = ", ".join(f"{key} {asked[key]} (there {given.get(key, 0)})" for key in differ)
        raise UserError(f"a node of the runtime has claims to devices, and other sizes: {found}", where=runtime["metadata"]["name"],
                        mend="write the runtime's sizes into the profile's section cluster, or change the overlay")
    for check in pod.get("initContainers", ()):  # a pod's request is the largest of its containers', and Trainer 2.3.0 sizes one of them
        larger = [f"{key} {size}" for key, size in check.get("resources", {}).get("limits", {}).items()
                  if key in asked and parse_quantity(size) > parse_quantity(asked[key])]
        if larger:
            print(f"every node reserves {', '.join(larger)} whatever is asked: its container {check['name']} keeps the runtime's sizes; "
                  "smaller ones are for the overlay to say", flush=True)
    return dict(asked) if differ else None
