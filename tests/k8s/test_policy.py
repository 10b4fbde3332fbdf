"""What the manifests may never do, checked on every pod of every overlay, whatever kind holds it."""

import re
from collections.abc import Iterator

import pytest

# What a volume may be backed by.
VOLUMES = {"emptyDir", "persistentVolumeClaim", "configMap", "secret", "name"}
PLAIN_SECRET = re.compile(r"(?i)(password|secret|token|api[-_]?key|access[-_]?key)")
COUNTED = {"NUM_OF_TOKENS_PER_CHUNK_COMBINE_API"}  # tokens of text


def pods(objects: list[dict]) -> Iterator[tuple[str, dict]]:
    """Name and specification of every pod template, found by its containers."""
    def walk(node: object, name: str) -> Iterator[tuple[str, dict]]:
        if isinstance(node, dict):
            if "containers" in node:
                yield name, node
            for value in node.values():
                yield from walk(value, name)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value, name)
    for item in objects:
        yield from walk(item, f"{item['kind']}/{item['metadata']['name']}")


@pytest.fixture(scope="session")
def all_pods(objects):
    found = list(pods(objects))
    assert {name for name, _ in found} == {"Deployment/mlflow", "StatefulSet/postgres", "LeaderWorkerSet/vllm",
                                           "TrainingRuntime/stagecraft-train"}
    return found


@pytest.fixture(scope="session")
def containers(all_pods):
    return [(f"{name}/{container['name']}", container) for name, pod in all_pods
            for container in [*pod.get("initContainers", ()), *pod["containers"]]]


def test_pods_run_as_nobody_in_particular(all_pods):
    for name, pod in all_pods:
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] > 0 and context["runAsGroup"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & pod.keys(), name


def test_containers_have_no_privileges(containers):
    for name, container in containers:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "privileged": False, "readOnlyRootFilesystem": True,
                                                "capabilities": {"drop": ["ALL"]}}, name
        assert not any("hostPort" in port for port in container.get("ports", ())), name


def test_volumes_are_bounded_and_none_is_the_nodes(all_pods):
    for name, pod in all_pods:
        for volume in pod.get("volumes", ()):
            assert volume.keys() <= VOLUMES, (name, volume)
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], (name, volume)


def test_every_mount_has_a_volume_and_every_volume_a_mount(all_pods):
    for name, pod in all_pods:
        mounted = {mount["name"] for container in [*pod.get("initContainers", ()), *pod["containers"]]
                   for mount in container["volumeMounts"]}
        claims = {"data"} if name == "StatefulSet/postgres" else set()
        assert mounted == {volume["name"] for volume in pod.get("volumes", ())} | claims, name


def test_resources_are_limited(containers):
    for name, container in containers:
        resources = container["resources"]
        assert {"cpu", "memory"} <= resources["limits"].keys() and resources["requests"].keys() == resources["limits"].keys(), name
        assert resources["requests"]["memory"] == resources["limits"]["memory"], name


def test_images_are_pinned(containers):
    for name, container in containers:
        registry, _, tag = container["image"].rpartition(":")
        assert registry and "/" not in tag and re.search(r"\d+\.\d+", tag) and tag != "latest", (name, container["image"])


def test_servers_are_probed(all_pods):
    for name, pod in all_pods:
        if name.partition("/")[0] != "TrainingRuntime":
            for container in pod["containers"]:
                assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), name


def test_no_secret_is_in_a_manifest(objects, containers):
    assert not [item for item in objects if item["kind"] == "Secret"]
    for name, container in containers:
        for entry in container.get("env", ()):
            if PLAIN_SECRET.search(entry["name"]):
                assert entry.keys() == {"name", "valueFrom"} and entry["valueFrom"].keys() == {"secretKeyRef"}, (name, entry)
    for item in objects:
        if item["kind"] == "ConfigMap":
            for key, value in item["data"].items():
                assert not PLAIN_SECRET.search(key) or (key in COUNTED and value.isdigit()), key
                assert not re.search(r"://[^/\s]+:[^/\s]+@", value), f"credentials in an address: {key}"


def test_roles_give_little(objects):
    roles = [item for item in objects if item["kind"] in ("Role", "ClusterRole")]
    assert roles and not [item for item in objects if item["kind"] in ("ClusterRole", "ClusterRoleBinding")]
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], role["metadata"]
            assert not {"secrets", "roles", "rolebindings", "pods/exec", "serviceaccounts/token"} & set(rule["resources"]), role["metadata"]
            assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"]), role["metadata"]
    for binding in (item for item in objects if item["kind"] == "RoleBinding"):
        for subject in binding["subjects"]:  # no workload of ours: people's groups, the Prometheus that scrapes, tasks that start training
            assert subject["kind"] == "Group" or (subject["name"], subject["namespace"], binding["roleRef"]["name"]) in {
                ("prometheus-k8s", "monitoring", "prometheus"), ("prometheus-k8s", "monitoring", "stagecraft-prometheus"),
                ("pipeline-runner", "kubeflow", "pipelines")}, subject
        assert (binding["metadata"]["namespace"], binding["roleRef"]["name"]) in {
            (role["metadata"]["namespace"], role["metadata"]["name"]) for role in roles}, binding["metadata"]


def test_the_namespace_refuses_what_is_not_restricted(objects):
    (namespace,) = [item for item in objects if item["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_nothing_is_reached_from_outside(objects):
    kinds = {item["kind"] for item in objects}
    assert not kinds & {"Ingress", "Gateway", "HTTPRoute"}
    assert {item["spec"].get("type", "ClusterIP") for item in objects if item["kind"] == "Service"} == {"ClusterIP"}
