"""That the parts of the manifests mean each other, and what the code says."""

import re
from configparser import ConfigParser
from pathlib import Path

import yaml
from kfp import dsl

from components.serve.deployment import arguments
from components.serve.params import Deployment
from stagecraft.cli import doctor
from stagecraft.contract import jobspec, trainjob
from stagecraft.contract.cluster import ON_MANY_NODES, read_cluster
from stagecraft.contract.params import read_profile
from stagecraft.contract.pod import SETTINGS, SETTINGS_KEYS, SHARED, SHARED_CLAIM, in_pod
from stagecraft.doctor.node import load as load_node
from stagecraft.doctor.node import share
from tests.k8s.conftest import ROOT, only
from tests.k8s.test_policy import pods

GPU = "nvidia.com/gpu"
UNITS = {"m": 1e-3, "": 1, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def amount(quantity: object) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity)).groups()
    return float(number) * UNITS[unit]


def pod_of(objects: list[dict], kind: str) -> dict:
    ((_, pod),) = pods([only(objects, kind)])
    return pod


def labels(objects: list[dict]) -> list[dict]:
    """Labels of every pod template in the namespace."""
    found = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if "spec" in node and "metadata" in node and isinstance(node["spec"], dict) and "containers" in node["spec"]:
                found.append(node["metadata"]["labels"])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)
    walk(objects)
    return found


def selects(selector: dict, pod: dict) -> bool:
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    assert all(entry["operator"] == "In" for entry in selector.get("matchExpressions", ()))
    return selector.get("matchLabels", {}).items() <= pod.items() and all(
        pod.get(entry["key"]) in entry["values"] for entry in selector.get("matchExpressions", ()))


# Who may open a connection to whom, in the namespace. Everything else is refused.
EDGES = {("training", "training"), ("training", "mlflow"), ("mlflow", "postgres")}


def test_pods_reach_exactly_whom_they_must(objects):
    policies = [item["spec"] for item in objects if item["kind"] == "NetworkPolicy"]
    everyone = {pod["stagecraft.dev/role"]: pod for pod in labels(objects)}
    assert set(everyone) == {"training", "mlflow", "postgres", "serving"}
    for pod in everyone.values():  # every pod is denied by default, both ways
        assert any(selects(policy["podSelector"], pod) and not policy.get("ingress") and not policy.get("egress")
                   and set(policy["policyTypes"]) == {"Ingress", "Egress"} for policy in policies)

    def allowed(pod: dict, other: dict, way: str, end: str) -> bool:
        return any("podSelector" in peer and "namespaceSelector" not in peer and selects(peer["podSelector"], other)
                   for policy in policies if selects(policy["podSelector"], pod)
                   for rule in policy.get(way, ()) for peer in rule[end])
    edges = {(a, b) for a in everyone for b in everyone
             if allowed(everyone[a], everyone[b], "egress", "to") and allowed(everyone[b], everyone[a], "ingress", "from")}
    assert edges == EDGES
    outside = {name for name, pod in everyone.items() for policy in policies if selects(policy["podSelector"], pod)
               for rule in policy.get("egress", ()) for peer in rule["to"] if "ipBlock" in peer}
    assert outside == {"mlflow"}  # the object store


def test_ports_of_policies_services_and_monitors_exist(objects):
    by_role = {}
    for pod in labels(objects):
        by_role[pod["stagecraft.dev/role"]] = pod
    ports = {}
    kinds = {"Deployment": "mlflow", "StatefulSet": "postgres", "LeaderWorkerSet": "serving", "TrainingRuntime": "training"}
    for kind, role in kinds.items():
        ports[role] = {key for container in pod_of(objects, kind)["containers"] for port in container["ports"]
                       for key in (port["name"], port["containerPort"])}
    for item in objects:
        if item["kind"] == "NetworkPolicy":
            for role, pod in by_role.items():
                if selects(item["spec"]["podSelector"], pod):
                    for rule in item["spec"].get("ingress", ()):
                        assert {port["port"] for port in rule.get("ports", ())} <= ports[role], item["metadata"]["name"]
        elif item["kind"] == "Service":
            (role,) = [role for role, pod in by_role.items() if item["spec"]["selector"].items() <= pod.items()]
            assert {port["targetPort"] for port in item["spec"]["ports"]} <= ports[role]
        elif item["kind"] == "ServiceMonitor":
            services = [other for other in objects if other["kind"] == "Service"
                        and item["spec"]["selector"]["matchLabels"].items() <= other["metadata"]["labels"].items()]
            named = {port["name"] for other in services for port in other["spec"]["ports"]}
            assert {entry["port"] for entry in item["spec"]["endpoints"]} <= named


def test_what_pods_refer_to_is_there(objects):
    """ConfigMaps, claims and accounts are made here; Secrets are named in docs/cluster.md, which says how to make them."""
    made = {(item["kind"], item["metadata"]["name"]) for item in objects if item["metadata"].get("namespace") == "stagecraft"}
    guide = (ROOT / "docs" / "cluster.md").read_text()
    for name, pod in pods(objects):
        assert ("ServiceAccount", pod["serviceAccountName"]) in made
        for volume in pod.get("volumes", ()):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in made, name
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in made, name
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            for source in container.get("envFrom", ()):
                assert ("ConfigMap", source["configMapRef"]["name"]) in made, name
            for entry in container.get("env", ()):
                if secret := entry.get("valueFrom", {}).get("secretKeyRef"):
                    assert re.search(rf"create secret generic {secret['name']}\b[^;]*?--from-[a-z]+={secret['key']}=", guide), secret


def test_the_default_job_fits_its_queue_and_the_namespace(objects, overlay):
    """Kueue admits a job only if its queue covers every resource it asks for."""
    runtime = only(objects, "TrainingRuntime")["spec"]
    nodes = runtime["mlPolicy"]["numNodes"]
    pod = pod_of(objects, "TrainingRuntime")
    request = {key: nodes * amount(value) for key, value in pod["containers"][0]["resources"]["requests"].items()}
    if claims := pod.get("resourceClaims"):
        request["nvidia.com/nvlink-channel"] = nodes * len(claims)
    for container in pod["initContainers"]:  # they run before, not beside
        assert all(nodes * amount(value) <= request[key] for key, value in container["resources"]["requests"].items())
    quota = queue_quota(objects, "stagecraft-train")
    assert request.keys() <= quota.keys()
    assert all(value <= quota[key] for key, value in request.items()), (request, quota)
    assert request[GPU] == {"hopper": 64, "blackwell": 128}[overlay]  # the latter for rows of a million tokens
    hard = only(objects, "ResourceQuota")["spec"]["hard"]
    for key in ("cpu", "memory", GPU):
        both = quota[key] + queue_quota(objects, "stagecraft-serve")[key]
        assert request[key] <= amount(hard[f"requests.{key}"]) and both >= request[key]


def test_the_check_of_a_node_sees_what_the_rank_sees(objects, overlay):
    """Devices, shared memory and the volume of the work; or it would judge the pod it is in, and no job would start."""
    pod = pod_of(objects, "TrainingRuntime")
    (check,), (rank,) = pod["initContainers"], pod["containers"]
    assert check["resources"] == rank["resources"] and check["command"][:2] == ["stagecraft", "doctor"]
    asked = doctor.parser().parse_args(check["command"][2:])
    assert asked.gpus == int(check["resources"]["limits"][GPU])
    share(load_node({"hopper": "h100", "blackwell": "gb300"}[overlay]), asked.gpus)  # which has so many
    mounts = {mount["mountPath"]: mount for mount in check["volumeMounts"]}
    assert all(mounts[path] in rank["volumeMounts"] for path in ("/dev/shm", str(asked.work)))


def test_ranks_that_nvlink_does_not_join_have_rdma(objects):
    """A doctor sees the adapters without the device that opens them; NCCL goes by sockets then, and says so to nobody."""
    runtime, pod = only(objects, "TrainingRuntime")["spec"], pod_of(objects, "TrainingRuntime")
    limits = pod["containers"][0]["resources"]["limits"]
    reach = int(only(objects, "ConfigMap", "node-env")["data"]["NVLINK_DOMAIN_SIZE"])
    assert runtime["mlPolicy"]["numNodes"] * int(limits[GPU]) > reach
    (device,) = [key for key in limits if key.startswith("rdma/")]
    assert f"`{device.removeprefix('rdma/')}`" in (ROOT / "docs" / "cluster.md").read_text()


def queue_quota(objects: list[dict], name: str) -> dict[str, float]:
    """Nominal quota of a queue's flavour of GPUs."""
    (group,) = only(objects, "ClusterQueue", name)["spec"]["resourceGroups"]
    flavours = {item["metadata"]["name"] for item in objects if item["kind"] == "ResourceFlavor"}
    assert {flavour["name"] for flavour in group["flavors"]} <= flavours
    for flavour in group["flavors"]:
        assert [entry["name"] for entry in flavour["resources"]] == group["coveredResources"]
    return {entry["name"]: amount(entry["nominalQuota"]) for entry in group["flavors"][-1]["resources"]}


def test_the_smallest_service_fits_its_queue(objects):
    replicas = only(objects, "ScaledObject")["spec"]["minReplicaCount"]
    quota = queue_quota(objects, "stagecraft-serve")
    for key, value in pod_of(objects, "LeaderWorkerSet")["containers"][0]["resources"]["requests"].items():
        assert replicas * amount(value) <= quota[key], key
    budget = only(objects, "PodDisruptionBudget", "vllm")["spec"]
    assert budget["minAvailable"] < replicas  # or no node could ever be drained
    batch = next(word for word in pod_of(objects, "LeaderWorkerSet")["containers"][0]["args"] if word.startswith("--max-num-seqs="))
    (trigger,) = only(objects, "ScaledObject")["spec"]["triggers"]
    assert 2 * int(trigger["metadata"]["threshold"]) == int(batch.partition("=")[2])  # half full, a replica may be lost


def test_queues_and_topology_are_those_named(objects):
    queues = {(item["metadata"]["namespace"], item["metadata"]["name"]): item["spec"]["clusterQueue"]
              for item in objects if item["kind"] == "LocalQueue"}
    assert set(queues.values()) == {item["metadata"]["name"] for item in objects if item["kind"] == "ClusterQueue"}
    serving = only(objects, "LeaderWorkerSet")["metadata"]["labels"]
    assert ("stagecraft", serving["kueue.x-k8s.io/queue-name"]) in queues
    assert only(objects, "WorkloadPriorityClass", serving["kueue.x-k8s.io/priority-class"])
    topology = only(objects, "Topology")
    (job,) = only(objects, "TrainingRuntime")["spec"]["template"]["spec"]["replicatedJobs"]
    (key, level), *slices = job["template"]["spec"]["template"]["metadata"]["annotations"].items()
    assert key.startswith("kueue.x-k8s.io/podset-") and {"nodeLabel": level} in topology["spec"]["levels"]
    assert [name for name, _ in slices] == (["kueue.x-k8s.io/podset-slice-size"] if "slice" in key else [])
    named = {item["spec"]["topologyName"] for item in objects if item["kind"] == "ResourceFlavor" and item["spec"]}
    assert named == {topology["metadata"]["name"]}


def test_vllm_is_started_as_the_serve_stage_checked_it(objects, overlay):
    """The profile's arguments, with the overlay's count of GPUs, and three flags of the published recipe."""
    profile = read_profile(ROOT / "params" / "super-120b.yaml")["serve"]
    container = pod_of(objects, "LeaderWorkerSet")["containers"][0]
    gpus = int(container["resources"]["limits"][GPU])
    deployment = Deployment(**{**profile["deployment"], "gpus": gpus})
    checked = iter(arguments(profile["server"]["name"], deployment, profile["server"]["draft_tokens"]))
    expected = {"--kv-cache-dtype=fp8", "--async-scheduling", "--enable-chunked-prefill"}
    for word in (words := list(checked)):
        if word.startswith("--"):
            following = words[words.index(word) + 1] if word != words[-1] else "--"
            expected.add(word if following.startswith("--") else f"{word}={following}")
    assert {*container["args"][1:], f"--model={container['args'][0]}"} == expected
    assert container["image"] == deployment.image
    secret = next(entry for entry in container["env"] if entry["name"] == "VLLM_API_KEY")["valueFrom"]["secretKeyRef"]
    assert secret == {"name": deployment.secret, "key": "api-key"}
    volume = next(volume for volume in pod_of(objects, "LeaderWorkerSet")["volumes"] if volume["name"] == "model")
    assert volume["persistentVolumeClaim"] == {"claimName": deployment.claim, "readOnly": True}
    assert only(objects, "NetworkPolicy", "serving")["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"] == {
        "stagecraft.dev/client": deployment.clients}
    assert gpus == {"hopper": 2, "blackwell": 1}[overlay]  # published: FP8 on two H100, NVFP4 on one B200


def test_vllm_understands_the_arguments(objects):
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    command = pod_of(objects, "LeaderWorkerSet")["containers"][0]
    assert command["command"] == ["vllm", "serve"]
    read = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", *command["args"]])
    assert read.kv_cache_dtype == "fp8" and read.async_scheduling is True and read.enable_chunked_prefill is True
    pod, before = pod_of(objects, "LeaderWorkerSet"), command["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert 0 < read.shutdown_timeout <= pod["terminationGracePeriodSeconds"] - before - 10  # requests in flight may finish
    assert read.speculative_config == {"method": "mtp", "num_speculative_tokens": 3}


def test_mlflow_is_the_clients_version_and_knows_its_flags(objects):
    lock = (ROOT / "requirements" / "laptop.lock").read_text()
    image = pod_of(objects, "Deployment")["containers"][0]["image"]
    version = image.rpartition(":")[2]
    assert f"\nmlflow=={version}\n" in lock
    assert f"\nmlflow=={version}\n" in (ROOT / "k8s" / "mlflow" / "requirements.txt").read_text()
    from mlflow.cli import server

    container = pod_of(objects, "Deployment")["containers"][0]
    known = {option for parameter in server.params for option in parameter.opts}
    assert {argument.partition("=")[0] for argument in container["args"]} <= known
    settings = ConfigParser()
    settings.read_string(only(objects, "ConfigMap", "mlflow-auth")["data"]["basic_auth.ini"])
    assert "admin_password" not in settings["mlflow"]
    assert settings["mlflow"]["database_uri"] in " ".join(container["args"])


def test_node_environment_is_what_the_doctor_wants(overlay, objects):
    """As its first line says it was written; every line's reason and source are the node's file's. Pods get the whole of it."""
    kinds = {"hopper": ("h100", "h200"), "blackwell": ("gb300",)}[overlay]
    text = (ROOT / "k8s" / "overlays" / overlay / "node-env.env").read_text()
    command = re.search(r"`stagecraft doctor (.*)`", text.splitlines()[0])[1]
    asked = doctor.parser().parse_args(command.split())
    assert asked.profile == kinds[0] and text == doctor.environment(asked.profile, load_node(asked.profile), asked.env)
    guide = next(line for line in (ROOT / "docs" / "cluster.md").read_text().splitlines() if f"| `k8s/overlays/{overlay}` |" in line)
    for promised in (guide, (ROOT / "k8s" / "overlays" / overlay / "kustomization.yaml").read_text().splitlines()[0]):
        assert {gpu.lower() for gpu in re.findall(r"\bG?[BH]\d00\b", promised)} == set(kinds)  # others are taken for a laptop
    for kind in kinds:
        assert only(objects, "ConfigMap", "node-env")["data"] == {line.name: line.value for line in load_node(kind).environment}
    assert only(objects, "ConfigMap", "node-env")["data"]["USE_MNNVL"] == {"hopper": "0", "blackwell": "1"}[overlay]
    assert int(only(objects, "ConfigMap", "node-env")["data"]["NVLINK_DOMAIN_SIZE"]) in (8, 72)


def test_our_series_and_vllms_exist(expressions):
    """A panel of a series that nobody writes stays empty for ever."""
    import vllm

    names = {name for text in expressions for name in re.findall(r"\b(?:stagecraft_|vllm:)[a-z_]+", text)}
    ours = set(re.findall(r'Gauge\("([a-z_]+)"', (ROOT / "stagecraft" / "contract" / "prometheus.py").read_text()))
    theirs = set(re.findall(r'"(vllm:[a-z_]+)"', "".join(path.read_text() for path in (Path(vllm.__file__).parent / "v1").rglob("*.py")
                                                        if "metrics" in path.parts or path.name == "metrics.py")))
    assert len(ours) == 5 and len(theirs) > 30
    # Prometheus' client adds these endings to counters and histograms.
    assert {re.sub(r"_(total|bucket)$", "", name) for name in names if name.startswith("vllm:")} <= theirs
    assert {name for name in names if name.startswith("stagecraft_")} <= ours


def test_alerts_lead_to_the_runbook(objects):
    guide = (ROOT / "docs" / "cluster.md").read_text()
    anchors = {re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
               for line in guide.splitlines() if line.startswith("#")}
    for group in only(objects, "PrometheusRule")["spec"]["groups"]:
        for rule in group["rules"]:
            document, _, anchor = rule["annotations"]["runbook"].partition("#")
            assert document == "docs/cluster.md" and anchor in anchors, rule["alert"]
            assert rule["labels"]["severity"] in ("critical", "warning") and rule["annotations"]["summary"]


def test_a_pipelines_train_job_finds_what_it_names(objects, overlay):
    """Namespace, runtime, queue, claim and rights; and the profile's nodes are of the overlay's size, and no more than it has."""
    runtime = only(objects, "TrainingRuntime", trainjob.RUNTIME)
    assert runtime["metadata"]["namespace"] == trainjob.NAMESPACE
    queue = only(objects, "LocalQueue", jobspec.QUEUE)
    assert queue["metadata"]["namespace"] == trainjob.NAMESPACE
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = pod_of(objects, "TrainingRuntime")
    (container,) = pod["containers"]
    assert replicated["name"] == container["name"] == jobspec.NODE
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[jobspec.SHM]["emptyDir"]["medium"] == "Memory"
    (mount,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == SHARED]
    assert "subPath" not in mount and volumes[mount["name"]]["persistentVolumeClaim"] == {"claimName": SHARED_CLAIM}
    claims = {item["metadata"]["namespace"]: item["spec"] for item in objects
              if (item["kind"], item["metadata"]["name"]) == ("PersistentVolumeClaim", SHARED_CLAIM)}
    assert claims["kubeflow"] == claims[trainjob.NAMESPACE]  # two claims to one volume
    settings = only(objects, "ConfigMap", SETTINGS)["data"]
    assert settings["STAGECRAFT_SHARED"] == SHARED and set(settings) == set(SETTINGS_KEYS)
    classes = {item["metadata"]["name"] for item in objects if item["kind"] == "WorkloadPriorityClass"}
    pods_asked = read_cluster(ROOT / "params" / "super-120b.yaml")
    assert {asked.priority for asked in pods_asked.values()} <= classes
    if overlay == "blackwell":
        for stage in ON_MANY_NODES:
            asked = pods_asked[stage]
            in_a_rack = int(replicated["template"]["spec"]["template"]["metadata"]["annotations"]["kueue.x-k8s.io/podset-slice-size"])
            assert asked.nodes <= runtime["spec"]["mlPolicy"]["numNodes"] and asked.nodes % in_a_rack == 0  # Kueue wants whole slices
            assert {"cpu": asked.cpu, "memory": asked.memory, asked.gpu.type: str(asked.gpu.count),
                    "rdma/rdma_shared_device_a": "1"} == container["resources"]["limits"]


def test_tasks_fit_the_queue(objects, overlay):
    """Kueue would let a pod that asks for more than its queue has wait for ever."""
    quota = queue_quota(objects, "stagecraft-train")
    for profile in ("params.yaml", "params/super-120b.yaml"):
        for asked in read_cluster(ROOT / profile).values():
            for key, value in (("cpu", asked.cpu), ("memory", asked.memory), (GPU, asked.gpu.count)):
                assert amount(value) <= quota[key], (profile, key)


def annotations(stage: str) -> dict[str, str]:
    """What KFP is told to write on the pod of a stage's task."""
    def nothing() -> None: ...
    nothing.__name__ = stage
    made = []

    @dsl.pipeline
    def alone():
        made.append(in_pod(dsl.component(nothing, base_image="-", install_kfp_package=False)()))
    return made[0].platform_config["kubernetes"]["podMetadata"].get("annotations", {})


def test_every_task_has_a_flavour_that_takes_it(objects, monkeypatch):
    """A flavour with a topology takes no pod that does not ask for one, a flavour without it none that does, where a queue has both."""
    (group,) = only(objects, "ClusterQueue", "stagecraft-train")["spec"]["resourceGroups"]
    topology = {item["metadata"]["name"]: "topologyName" in item["spec"] for item in objects if item["kind"] == "ResourceFlavor"}
    assert len({topology[flavour["name"]] for flavour in group["flavors"]}) == 2
    for profile in ("params.yaml", "params/super-120b.yaml"):
        monkeypatch.setenv("STAGECRAFT_PARAMS", profile)
        for stage, asked in read_cluster(ROOT / profile).items():
            # The task that waits for a TrainJob asks for nothing itself.
            sizes = {"cpu": asked.cpu, "memory": asked.memory, GPU: asked.gpu.count} if asked.nodes == 1 else {}
            asks = any(key.startswith("kueue.x-k8s.io/podset-") for key in annotations(stage))
            quotas = [{entry["name"]: amount(entry["nominalQuota"]) for entry in flavour["resources"]} for flavour in group["flavors"]
                      if topology[flavour["name"]] == asks]
            assert any(all(amount(value) <= quota[key] for key, value in sizes.items()) for quota in quotas), (profile, stage)


def test_the_tasks_role_is_what_following_a_job_takes(objects):
    """No verb more; that there is none less is what the server in tests/orchestration/test_train_jobs.py sees to."""
    role = only(objects, "Role", "pipelines")
    assert role["metadata"]["namespace"] == trainjob.NAMESPACE
    assert {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]} == {
        *(("trainjobs", verb) for verb in ("create", "get", "list", "watch", "delete")), ("trainingruntimes", "get"),
        *(("pods", verb) for verb in ("get", "list", "watch")), ("pods/log", "get")}


def test_the_guides_train_job_is_one(objects):
    """The TrainJob in docs/cluster.md, by Trainer's own model and what is deployed here."""
    from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob

    guide = (ROOT / "docs" / "cluster.md").read_text()
    jobs = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL) if "kind: TrainJob" in text]
    assert jobs
    for job in jobs:
        assert TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job
        assert only(objects, "TrainingRuntime", job["spec"]["runtimeRef"]["name"])
        assert only(objects, "LocalQueue", job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"])
