"""What a task asks of its pod: the profile's section `cluster`, and what every task finds in the cluster. Nothing on a laptop."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace

from kfp import kubernetes
from kfp.dsl import PipelineTask, TaskConfigField, TaskConfigPassthrough

from stagecraft.contract.cluster import TRAINJOB_VARIABLE, Job, Pod, read_cluster
from stagecraft.contract.images import image
from stagecraft.contract.kfp_task import RUNNER_VARIABLE, project_root
from stagecraft.contract.params import params_path

# Made by k8s/base/pipelines, in the namespace where Kubeflow Pipelines runs its tasks; the Secret by hand (docs/cluster.md).
SETTINGS = "stagecraft-pipeline"
SETTINGS_KEYS = ("STAGECRAFT_REMOTE", "STAGECRAFT_SHARED", "MLFLOW_TRACKING_URI", "STAGECRAFT_METRICS_PORT")
ACCOUNT = "mlflow-client"
ACCOUNT_KEYS = {"username": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"}
REMOTE_CLAIM, REMOTE = "stagecraft-remote", "/remote"
SHARED_CLAIM, SHARED = "stagecraft-work", "/work"
QUEUE = "stagecraft-pipelines"
USER = 1000  # of the images (components/Containerfile)
ARCHITECTURE = "kubernetes.io/arch"  # label of every node
# How long after a task's first pod another may start, and run: what Argo makes of KFP's longest backoff. Its clock runs while pods wait in
# Kueue's queue too, so this is a hundred years, and it is `timeout_seconds` and `retries` that end a task.
_RETRIED_FOR = f"{100 * 365 * 86400}s"


def _local() -> bool:
    """Whether the pipeline is made for a run on this machine."""
    return os.environ.get(RUNNER_VARIABLE) == "local"


def _asked(stage: str) -> Pod:
    """The stage's entry, with the image it means."""
    pod = read_cluster(project_root() / params_path())[stage]
    return replace(pod, image=pod.image or image(stage))


def on_nodes(stage: str) -> list[TaskConfigPassthrough] | None:
    """What a component hands on to the TrainJob it starts, None where the stage runs in its task's own pod.

    The task that waits for a TrainJob takes no GPU itself and runs anywhere where its image does; its volumes and environment it needs as
    any other.
    """
    if _local() or _asked(stage).nodes == 1:
        return None
    fields = (TaskConfigField.RESOURCES, TaskConfigField.KUBERNETES_NODE_SELECTOR)
    both = (TaskConfigField.ENV, TaskConfigField.KUBERNETES_VOLUMES, TaskConfigField.KUBERNETES_TOLERATIONS,
            TaskConfigField.KUBERNETES_AFFINITY)
    return [*(TaskConfigPassthrough(field) for field in fields), *(TaskConfigPassthrough(field, apply_to_task=True) for field in both)]


def in_pod(task: PipelineTask) -> PipelineTask:
    """Give a stage's task what its pod needs, and return it.

    Raises:
        UserError: the profile's section `cluster` is missing or wrong.
    """
    if _local():
        return task
    stage = task.component_spec.name
    pod = _asked(stage)
    kubernetes.use_config_map_as_env(task, SETTINGS, {key: key for key in SETTINGS_KEYS})
    kubernetes.mount_pvc(task, REMOTE_CLAIM, REMOTE)
    kubernetes.mount_pvc(task, SHARED_CLAIM, SHARED)
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=pod.shared_memory)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    labels = {"stagecraft.dev/stage": stage, "kueue.x-k8s.io/queue-name": QUEUE, "kueue.x-k8s.io/priority-class": pod.priority}
    for key, value in labels.items():
        kubernetes.add_pod_label(task, key, value)
    for secret, keys in {ACCOUNT: ACCOUNT_KEYS, **pod.secrets}.items():
        kubernetes.use_secret_as_env(task, secret, keys)
    return _as_asked(task, pod)


def _as_asked(task: PipelineTask, pod: Pod) -> PipelineTask:
    """The stage's own entry of the section."""
    task.set_caching_options(enable_caching=False)  # DVC's decides what is stale: KFP's sees neither code nor the content of files
    task.set_container_image(pod.image)
    task.set_cpu_request(pod.cpu).set_cpu_limit(pod.cpu).set_memory_request(pod.memory).set_memory_limit(pod.memory)
    if pod.gpu.count:
        task.set_accelerator_type(pod.gpu.type).set_accelerator_limit(pod.gpu.count)
        if pod.nodes == 1:
            # The nodes with GPUs have a topology, and Kueue gives none of them to a pod that does not say what it wants of it.
            kubernetes.add_pod_annotation(task, "kueue.x-k8s.io/podset-unconstrained-topology", "true")
    for key, value in pod.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for taint in pod.tolerations:
        kubernetes.add_toleration(task, taint.key, taint.operator, taint.value or None, taint.effect)
    for name, value in pod.environment.items():
        task.set_env_variable(name, value)
    kubernetes.set_timeout(task, pod.timeout_seconds)
    if pod.retries.count:
        task.set_retry(pod.retries.count, f"{pod.retries.pause_seconds}s", 2.0, _RETRIED_FOR)
    if pod.nodes > 1:
        job = Job(nodes=pod.nodes, image=pod.image, shared_memory=pod.shared_memory, priority=pod.priority,
                  timeout_seconds=pod.timeout_seconds)
        task.set_env_variable(TRAINJOB_VARIABLE, json.dumps(asdict(job)))
        if ARCHITECTURE in pod.node_selector:  # that of the image, which the task has too
            kubernetes.add_node_affinity(task, [{"key": ARCHITECTURE, "operator": "In", "values": [pod.node_selector[ARCHITECTURE]]}])
    return task
