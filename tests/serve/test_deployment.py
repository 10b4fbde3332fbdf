"""What is written for a cluster: read by the Kubernetes client's own models, its security properties one by one, vLLM's own parser."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from kubernetes import client

from components.serve.deployment import arguments, objects, write_manifest
from tests.serve.conftest import params

VERDICT = {"promoted": "nvfp4", "digest": "d" * 64, "protocol_digest": "p" * 64, "reason": "r"}
KINDS = {"Deployment": "V1Deployment", "Service": "V1Service", "NetworkPolicy": "V1NetworkPolicy"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    path = tmp_path_factory.mktemp("deployment") / "deployment.yaml"
    write_manifest(path, objects("stagecraft", params().deployment, 2, VERDICT))
    return {item["kind"]: item for item in yaml.safe_load_all(path.read_text())}


@pytest.fixture
def pod(manifest):
    return manifest["Deployment"]["spec"]["template"]["spec"]


def test_kubernetes_own_models_read_every_object_and_give_it_back(manifest):
    api = client.ApiClient()
    assert manifest.keys() == KINDS.keys()
    for kind, item in manifest.items():
        read = api.deserialize(SimpleNamespace(data=json.dumps(item)), KINDS[kind])
        assert api.sanitize_for_serialization(read) == item  # a field the models do not know would be lost


def test_pod_runs_without_privileges(pod):
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    (container,) = pod["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "privileged": False,
                                            "capabilities": {"drop": ["ALL"]}}
    assert ":" in container["image"] and not container["image"].endswith(":latest")


def test_pod_writes_to_scratch_alone(pod):
    mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes.keys() == mounts.keys()
    for name, mount in mounts.items():
        assert mount.get("readOnly") or "emptyDir" in volumes[name]
    assert not any("hostPath" in volume for volume in pod["volumes"])
    assert mounts["model"]["readOnly"] and volumes["model"]["persistentVolumeClaim"]["readOnly"]


def test_pod_is_watched_and_bounded(pod):
    (container,) = pod["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_requests_under_way_may_finish_and_a_slow_start_is_no_failure(manifest, pod):
    (container,) = pod["containers"]
    drain = int(container["args"][container["args"].index("--shutdown-timeout") + 1])  # vLLM's own is 0: it aborts them
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert drain >= 60 and before > 0 and before + drain + 10 <= pod["terminationGracePeriodSeconds"]
    start = container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"]
    assert manifest["Deployment"]["spec"]["progressDeadlineSeconds"] > pod["terminationGracePeriodSeconds"] + start


def test_network_lets_labelled_clients_in_and_nothing_out(manifest):
    policy = manifest["NetworkPolicy"]["spec"]
    labels = manifest["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert manifest["Service"]["spec"]["selector"].items() <= labels.items()
    assert manifest["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["egress"] == []
    (rule,) = policy["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"stagecraft.dev/client": "stagecraft-clients"}}}]
    assert manifest["Service"]["spec"]["type"] == "ClusterIP"


def test_no_secret_is_written_and_a_key_is_asked_for(manifest, pod):
    environment = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
    assert environment["VLLM_API_KEY"]["valueFrom"] == {"secretKeyRef": {"name": "stagecraft-api", "key": "api-key"}}
    assert not any("api-key" in argument for argument in pod["containers"][0]["args"])


def test_another_model_is_another_rollout(manifest):
    other = objects("stagecraft", params().deployment, 2, {**VERDICT, "digest": "e" * 64})[0]
    template = manifest["Deployment"]["spec"]["template"]
    assert template != other["spec"]["template"]


def test_vllm_understands_the_arguments(pod):
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    read = parser.parse_args(arguments("stagecraft", params().deployment, 2))
    assert read.speculative_config == {"method": "mtp", "num_speculative_tokens": 2}
    assert read.served_model_name == ["stagecraft"] and read.max_num_seqs == params().deployment.max_num_seqs
    assert read.enable_prefix_caching is False
    assert read.mamba_ssm_cache_dtype == "float16" and read.enable_mamba_cache_stochastic_rounding
    assert (read.mamba_cache_philox_rounds, str(read.mamba_backend)) == (5, "flashinfer")
    command = pod["containers"][0]
    assert command["command"] == ["vllm", "serve"] and command["args"][0] == "/model"


@pytest.mark.parametrize(("cache", "dtype"), [("float32", "float32"), ("float16", "float16")])
def test_plain_state_caches(cache, dtype):
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    flags = arguments("stagecraft", replace(params().deployment, ssm_cache=cache), 0)
    read = make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
    assert read.mamba_ssm_cache_dtype == dtype and not read.enable_mamba_cache_stochastic_rounding


def test_stochastic_rounding_is_what_upstream_says_of_it():
    """Off CUDA it is refused, and without a float16 cache: hence the three flags together, in the manifest only."""
    from vllm.config.mamba import MambaConfig

    with pytest.raises(ValueError, match="only supported on NVIDIA CUDA"):
        MambaConfig(enable_stochastic_rounding=True, backend="flashinfer")
