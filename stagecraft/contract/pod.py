"""What a task asks of a cluster: settings, DVC's remote, shared memory, GPUs, a place in the queue. A run on a laptop takes no notice."""

from __future__ import annotations

import os

from kfp import kubernetes
from kfp.dsl import PipelineTask

from stagecraft.contract.errors import UserError

# Made by k8s/base/pipelines, in the namespace where Kubeflow Pipelines runs its tasks; the Secret by hand (docs/cluster.md).
SETTINGS = "stagecraft-pipeline"
SETTINGS_KEYS = ("STAGECRAFT_REMOTE", "MLFLOW_TRACKING_URI", "STAGECRAFT_METRICS_PORT")
ACCOUNT = "mlflow-client"
CLAIM = "stagecraft-remote"
QUEUE = "stagecraft-pipelines"
REMOTE = "/remote"
USER = 1000  # of the images (components/Containerfile)

GPUS_VARIABLE = "STAGECRAFT_GPUS"
WITHOUT_GPU = ("curate",)


def in_pod(task: PipelineTask) -> PipelineTask:
    """Give a stage's task what its pod needs, and return it.

    `$STAGECRAFT_GPUS` is the count of GPUs of every task but curation's; it is read when the pipeline is compiled.

    Raises:
        UserError: it is no count.
    """
    stage = task.component_spec.name
    kubernetes.use_config_map_as_env(task, SETTINGS, {key: key for key in SETTINGS_KEYS})
    kubernetes.use_secret_as_env(task, ACCOUNT, {"username": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"})
    kubernetes.mount_pvc(task, CLAIM, REMOTE)
    kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory")
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.add_pod_label(task, "stagecraft.dev/stage", stage)
    kubernetes.add_pod_label(task, "kueue.x-k8s.io/queue-name", QUEUE)
    if (gpus := _gpus()) and stage not in WITHOUT_GPU:
        task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(gpus)
    return task


def _gpus() -> int:
    text = os.environ.get(GPUS_VARIABLE, "0")
    if not text.isdecimal():
        raise UserError(f"{GPUS_VARIABLE}={text} is no count of GPUs", where="environment", mend="give a whole number, or unset it")
    return int(text)
