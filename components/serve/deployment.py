"""The deployment that is written: vLLM's arguments for a cluster, and Kubernetes objects around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from components.serve.params import Deployment
from stagecraft.contract.files import write_atomic
from stagecraft.inference.server_settings import CHAT, speculation

PORT = 8000
MODEL = "/model"
USER = 2000
LOADING_SECONDS = 1800
# A pod that is told to end leaves the Service, lets requests under way finish, and has a moment to end in.
LEAVING_SECONDS, DRAIN_SECONDS, ENDING_SECONDS = 15, 270, 15
LABEL = "app.kubernetes.io/name"
CLIENT = "stagecraft.dev/client"
# vLLM 0.32.0 rounds stochastically on NVIDIA GPUs alone, with Triton only on Blackwell (config/mamba.py:85): FlashInfer serves Hopper too.
# Five rounds of Philox as in arXiv 2604.12374, section 4; vLLM's default is ten.
SSM_CACHE = {
    "float32": ["--mamba-ssm-cache-dtype", "float32"],
    "float16": ["--mamba-ssm-cache-dtype", "float16"],
    "float16_stochastic": ["--mamba-ssm-cache-dtype", "float16", "--enable-mamba-cache-stochastic-rounding",
                           "--mamba-cache-philox-rounds", "5", "--mamba-backend", "flashinfer"],
}


def arguments(name: str, deployment: Deployment, draft_tokens: int) -> list[str]:
    """vLLM's arguments in the pod: the parsers and drafts that were checked here, sized for a GPU."""
    return [
        "--model", MODEL, "--served-model-name", name, "--host", "0.0.0.0", "--port", str(PORT), "--dtype", deployment.dtype,
        "--max-model-len", str(deployment.max_model_len), "--max-num-seqs", str(deployment.max_num_seqs),
        "--tensor-parallel-size", str(deployment.gpus), "--shutdown-timeout", str(DRAIN_SECONDS), *SSM_CACHE[deployment.ssm_cache], *CHAT,
        *speculation(draft_tokens),
    ]


def objects(name: str, deployment: Deployment, draft_tokens: int, verdict: dict[str, Any]) -> list[dict[str, Any]]:
    """Deployment, Service and NetworkPolicy, within the restricted Pod Security Standard.

    Args:
        name: of the model and of every object.
        deployment: the stage's parameters.
        draft_tokens: of multi-token prediction.
        verdict: promotion.json; the digests in it mark the pods, so that another model is another rollout.
    """
    labels = {LABEL: name, "app.kubernetes.io/part-of": "stagecraft"}
    metadata = {"name": name, "labels": labels}
    marks = {"stagecraft.dev/artifact": verdict["promoted"], "stagecraft.dev/digest": verdict["digest"],
             "stagecraft.dev/protocol-digest": verdict["protocol_digest"]}
    grace = LEAVING_SECONDS + DRAIN_SECONDS + ENDING_SECONDS
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
                            "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": grace,
        "containers": [_container(name, deployment, draft_tokens)],
        "volumes": [
            {"name": "model", "persistentVolumeClaim": {"claimName": deployment.claim, "readOnly": True}},
            {"name": "scratch", "emptyDir": {"sizeLimit": "8Gi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        ],
    }
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {**metadata, "annotations": marks},
         "spec": {"replicas": deployment.replicas, "selector": {"matchLabels": {LABEL: name}},
                  # The GPUs of a pod are free only once it has gone.
                  "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
                  "progressDeadlineSeconds": grace + LOADING_SECONDS + 60,  # no rollout has failed while its pod may still load
                  "template": {"metadata": {"labels": labels, "annotations": marks}, "spec": pod}}},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata,
         "spec": {"type": "ClusterIP", "selector": {LABEL: name}, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]}},
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata,
         "spec": {"podSelector": {"matchLabels": {LABEL: name}}, "policyTypes": ["Ingress", "Egress"],
                  "ingress": [{"from": [{"podSelector": {"matchLabels": {CLIENT: deployment.clients}}}],
                               "ports": [{"protocol": "TCP", "port": "http"}]}],
                  "egress": []}},
    ]


def write_manifest(path: Path, several: list[dict[str, Any]]) -> None:
    """Write Kubernetes objects as one YAML file.

    Raises:
        ValueError: YAML does not give back what was written.
    """
    text = yaml.safe_dump_all(several, sort_keys=False, width=140)
    if list(yaml.safe_load_all(text)) != several:
        raise ValueError(f"{path} would not read back as it was written")
    write_atomic(path, text)


def _container(name: str, deployment: Deployment, draft_tokens: int) -> dict[str, Any]:
    resources = {"cpu": str(deployment.cpus), "memory": deployment.memory, "ephemeral-storage": "10Gi",
                 "nvidia.com/gpu": str(deployment.gpus)}
    health = {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 5}
    return {
        "name": "vllm",
        "image": deployment.image,
        "command": ["vllm", "serve"],
        "args": arguments(name, deployment, draft_tokens)[1:],  # `vllm serve` takes the model as its first word
        "env": [
            {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": {"name": deployment.secret, "key": "api-key"}}},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
            {"name": "HOME", "value": "/scratch"},
            {"name": "TMPDIR", "value": "/scratch"},
            {"name": "VLLM_CACHE_ROOT", "value": "/scratch/vllm"},
            {"name": "TRITON_CACHE_DIR", "value": "/scratch/triton"},
        ],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "privileged": False,
                            "capabilities": {"drop": ["ALL"]}},
        "startupProbe": {**health, "periodSeconds": 10, "failureThreshold": LOADING_SECONDS // 10},
        "readinessProbe": {**health, "periodSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**health, "periodSeconds": 15, "failureThreshold": 4},
        "lifecycle": {"preStop": {"sleep": {"seconds": LEAVING_SECONDS}}},
        "volumeMounts": [
            {"name": "model", "mountPath": MODEL, "readOnly": True},
            {"name": "scratch", "mountPath": "/scratch"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
