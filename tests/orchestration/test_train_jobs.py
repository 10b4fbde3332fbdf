"""A stage on several nodes: the kubeflow SDK and Kubernetes' client against an API server that (mis)behaves as a real one does."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob

from stagecraft.contract import trainjob, watching
from stagecraft.contract.cluster import TASK_VARIABLE, TRAINJOB_VARIABLE
from stagecraft.contract.errors import UserError
from stagecraft.contract.events import read_events
from tests.k8s.conftest import only
from tests.k8s.kustomize import build
from tests.orchestration.fake_kubernetes import fake_kubernetes

OVERLAYS = Path(__file__).parents[2] / "k8s" / "overlays"
NAME = "pretrain-0123456789abcdef"
JOB = {"nodes": 2, "image": "registry.example.com/stagecraft/stagecraft-pretrain:0.1.0", "shared_memory": "64Gi", "priority": "training",
       "timeout_seconds": 1000}
# As KFP's driver writes it (backend/src/v2/driver/driver.go): fragments of a pod, by Kubernetes' names.
SIZES = {"cpu": "128", "memory": "800Gi", "nvidia.com/gpu": "4"}
TASK = {"resources": {"limits": SIZES, "requests": SIZES}, "node_selector": {"nvidia.com/gpu.family": "blackwell"}, "affinity": None,
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "volumes": [{"name": "stagecraft-work", "persistentVolumeClaim": {"claimName": "stagecraft-work"}}],
        "volume_mounts": [{"name": "stagecraft-work", "mountPath": "/work"}],
        "env": [{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": TRAINJOB_VARIABLE, "value": json.dumps(JOB)},
                {"name": "MLFLOW_TRACKING_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "mlflow-client", "key": "password"}}}]}


def deployed(kind, name, overlay="blackwell"):
    return only(build(OVERLAYS / overlay), kind, name)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A server with the training runtime, and a task's clone as the current directory."""
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "params.yaml").write_text("pretrain: {steps: 100, hang_seconds: 600}\n")
    monkeypatch.chdir(tmp_path / NAME)
    monkeypatch.setattr(watching, "_LONGEST_PAUSE", 0.5)
    with fake_kubernetes(deployed("TrainingRuntime", "stagecraft-train"), deployed("Role", "pipelines"), tmp_path) as (made, config):
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(config))
        monkeypatch.setenv("STAGECRAFT_EVENTS", str(tmp_path / "events.jsonl"))
        monkeypatch.setenv(TRAINJOB_VARIABLE, json.dumps(JOB))
        monkeypatch.setenv(TASK_VARIABLE, json.dumps(TASK))
        yield made


def run(story=lambda: None):
    """Run the stage while `story`, on a thread of its own, plays what the controllers and the kubelets do."""
    def told():
        try:
            story()
        except BaseException:
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    with ThreadPoolExecutor() as pool:
        telling = pool.submit(told)
        try:
            trainjob.run_on_nodes("pretrain")
        finally:
            telling.result()


def last_words(story):
    """What the task says whose job has failed."""
    with pytest.raises(SystemExit) as ended:
        run(story)
    return str(ended.value.code)


def nodes(cluster, attempt=0):
    cluster.job()
    return [cluster.pod(NAME, node, attempt) for node in range(2)]


def finish(cluster, pods):
    for pod in pods:
        cluster.end(pod, 0)
    cluster.condition(NAME, "Complete", "all jobs completed successfully")


def created(cluster):
    return [path for method, path in cluster.requests if method == "POST"]


def test_a_job_is_made_of_what_the_task_was_asked(cluster, capsys, tmp_path):
    asked = []

    def story():
        asked.append(json.loads(json.dumps(cluster.job())))
        pods = nodes(cluster)
        cluster.write(pods[1], "node 1 speaks")
        cluster.write(pods[0], "pretrain | step 1", "pretrain | step 2")
        finish(cluster, pods)

    run(story)
    out = capsys.readouterr().out
    assert out.splitlines()[-2:] == ["pretrain | step 1", "pretrain | step 2"] and "node 1" not in out
    (job,) = asked
    assert job["metadata"]["name"] == NAME
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "training", "kueue.x-k8s.io/priority-class": "training",
                                         "stagecraft.dev/stage": "pretrain"}
    spec = job["spec"]
    assert spec["runtimeRef"]["name"] == "stagecraft-train" and spec["runtimeRef"]["kind"] == "TrainingRuntime"
    assert spec["activeDeadlineSeconds"] == 1000
    trainer = spec["trainer"]
    assert trainer["numNodes"] == 2 and trainer["image"] == JOB["image"]
    assert trainer["command"] == ["env", "-C", str(Path.cwd()), "python", "-m", "stagecraft.engine.torchrun", "-m", "components.pretrain"]
    assert "resourcesPerNode" not in trainer  # the runtime's own, with its claim to an NVLink channel
    environment = {entry["name"]: entry["value"] for entry in trainer["env"]}
    assert environment == {"NCCL_DEBUG": "INFO", "STAGECRAFT_PARAMS": "params.yaml", "STAGECRAFT_EVENTS": str(tmp_path / "events.jsonl")}
    (patch,) = spec["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert replicated["name"] == "node" and "containers" not in pod
    assert pod["nodeSelector"] == TASK["node_selector"] and pod["tolerations"] == TASK["tolerations"]
    assert pod["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}}]
    assert [event["event"] for event in read_events(tmp_path / "events.jsonl")[0]] == ["open"]
    path = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/stagecraft/trainjobs"
    assert ("DELETE", f"{path}/{NAME}?propagationPolicy=Foreground") in cluster.requests
    assert TrainerV1alpha1TrainJob.from_dict(job)


def test_a_failure_shows_the_last_lines_of_the_node_that_failed_first(cluster):
    def story():
        pods = nodes(cluster)
        cluster.write(pods[1], *(f"line {n}" for n in range(100)), "CUDA error: an illegal memory access", "rank 5 was the first")
        cluster.end(pods[1], 1)
        cluster.write(pods[0], "NCCL: connection closed by peer")
        cluster.end(pods[0], 1)
        cluster.condition(NAME, "Failed", "jobset failed due to reaching max number of restarts")

    said = last_words(story)
    assert "reaching max number of restarts\nnode 1 ended first, with exit code 1 (Error)" in said
    assert said.endswith("  CUDA error: an illegal memory access\n  rank 5 was the first")
    assert "line 99" in said and "line 10\n" not in said and "closed by peer" not in said
    assert NAME in cluster.objects["trainjobs"]  # left to be looked at; the next try replaces it


def test_pods_that_a_preemption_ended_are_not_the_failure(cluster):
    """Kueue takes a job's pods and gives it others later on: for JobSet that is no restart, and no attempt of its own."""
    def story():
        pods = nodes(cluster)
        cluster.wait(lambda: sum("log" in path for _, path in cluster.requests) >= 2)
        for pod in pods:
            cluster.write(pod, "ended by SIGTERM, and its ranks with it")
            cluster.end(pod, 143)
        for pod in pods:
            cluster.remove_pod(pod)
        pods = nodes(cluster)
        cluster.write(pods[1], "CUDA error: an illegal memory access")
        cluster.end(pods[1], 1)
        cluster.condition(NAME, "Failed", "jobset failed due to reaching max number of restarts")

    said = last_words(story)
    assert "node 1 ended first, with exit code 1 (Error)" in said and said.endswith("  CUDA error: an illegal memory access")


def test_a_users_mistake_ends_the_job_at_once_as_one_line(cluster):
    def story():
        pods = nodes(cluster)
        cluster.write(pods[0], "error: a line that is not meant")
        cluster.write(pods[1], "pretrain | reading", "error: params.yaml: pretrain.lr: too high - lower it",
                      "rank 3 was the first of this node")
        cluster.end(pods[1], 2)

    with pytest.raises(UserError) as caught:
        run(story)
    assert str(caught.value) == "params.yaml: pretrain.lr: too high - lower it"
    cluster.wait(lambda: not cluster.objects["trainjobs"])  # three restarts would come to the same


def test_cancelling_the_task_deletes_the_job(cluster, capsys):
    def story():
        nodes(cluster)
        cluster.wait(lambda: any("log" in path for _, path in cluster.requests))
        cluster.faults = [503, 0]  # the server need not be well for that
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        run(story)
    assert ended.value.code == 143
    cluster.wait(lambda: not cluster.objects["trainjobs"] and not cluster.objects["pods"])
    assert "cancelled" in capsys.readouterr().err


def test_cancelling_it_while_a_log_is_being_opened_does_so_too(cluster, monkeypatch):
    monkeypatch.setattr("stagecraft.contract.following.Log.start", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        run(lambda: nodes(cluster))
    assert ended.value.code == 143
    cluster.wait(lambda: not cluster.objects["trainjobs"])


def leave_a_job_behind(cluster, monkeypatch):
    """A task is lost as soon as its job is made; returns the job's pods, the first of which has said a hundred lines."""
    class Lost(BaseException):
        pass

    def lose(*arguments):
        raise Lost

    with monkeypatch.context() as patched:
        patched.setattr(trainjob.Follower, "run", lose)
        with pytest.raises(Lost):
            run()
    pods = nodes(cluster)
    cluster.write(pods[0], *(f"step {n}" for n in range(100)))
    return pods


def test_a_task_that_is_started_again_follows_the_job_that_runs(cluster, monkeypatch, capsys):
    pods = leave_a_job_behind(cluster, monkeypatch)
    capsys.readouterr()

    def story():
        cluster.wait(lambda: any(f"pods/{pods[0]}/log" in path for _, path in cluster.requests))
        cluster.write(pods[0], "step 100")
        finish(cluster, pods)

    monkeypatch.setenv("MLFLOW_RUN_ID", "another")  # KFP's plugin makes a run for every try: that is no other job
    run(story)
    out = capsys.readouterr().out.splitlines()
    assert "under way already" in out[0]
    assert out[-2:] == ["step 99", "step 100"] and "step 10" not in out  # what was said long ago is not said again
    assert len(created(cluster)) == 2  # tries; the server refused the second


@pytest.mark.parametrize("why", ["failed", "other image", "other parameters", "being deleted", "complete, and its outputs gone"])
def test_a_job_that_is_of_no_use_makes_room_first(cluster, monkeypatch, why):
    leave_a_job_behind(cluster, monkeypatch)
    before = cluster.job()["metadata"]["uid"]
    cluster.grace = 1.5
    if why == "failed":
        cluster.condition(NAME, "Failed")
    elif why == "other image":
        monkeypatch.setenv(TRAINJOB_VARIABLE, json.dumps(JOB | {"image": "registry.example.com/stagecraft/stagecraft-pretrain:0.2.0"}))
    elif why == "other parameters":
        Path("params.yaml").write_text("pretrain: {steps: 100, hang_seconds: 1200}\n")
    elif why == "being deleted":
        cluster.delete(NAME, "Foreground")
    else:
        cluster.condition(NAME, "Complete")

    def story():
        cluster.wait(lambda: cluster.objects["trainjobs"].get(NAME, {}).get("metadata", {}).get("uid") not in (None, before))
        assert not cluster.objects["pods"]
        finish(cluster, nodes(cluster))

    run(story)


def test_a_job_that_completed_without_us_is_done(cluster, monkeypatch):
    finish(cluster, leave_a_job_behind(cluster, monkeypatch))
    (Path.cwd() / "metrics").mkdir()
    (Path.cwd() / "metrics" / "pretrain.json").write_text("{}")
    run()
    assert len(created(cluster)) == 2


def test_no_line_is_lost_or_doubled_when_connections_break(cluster, capsys):
    def story():
        pods = nodes(cluster)
        for part in range(4):
            cluster.write(pods[0], *(f"step {part * 50 + n}" for n in range(50)))
            cluster.faults = [500, 0, 429]
            cluster.forget()  # all streams end; the versions that watches go on from are gone
            with cluster.lock:
                asked = len(cluster.requests)
            cluster.wait(lambda asked=asked: not cluster.faults and sum("log" in path for _, path in cluster.requests[asked:]) >= 1)
        finish(cluster, pods)

    run(story)
    out = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert out == [f"step {n}" for n in range(200)]


def test_watches_go_on_where_the_servers_timeout_ended_them(cluster, monkeypatch, capsys):
    monkeypatch.setattr(watching, "_WATCH_SECONDS", 1)

    def story():
        pods = nodes(cluster)
        cluster.wait(lambda: sum("trainjobs" in path and "watch=True" in path for _, path in cluster.requests) >= 3)
        finish(cluster, pods)

    run(story)
    lists = [path for method, path in cluster.requests if method == "GET" and "fieldSelector" in path and "watch" not in path]
    assert len(lists) == 1  # a timeout is no reason to list again


def test_restarted_ranks_are_followed(cluster, capsys):
    def story():
        pods = nodes(cluster)
        cluster.write(pods[0], "step 1")
        cluster.end(pods[1], 137)
        cluster.wait(lambda: sum("log" in path for _, path in cluster.requests) >= 2)
        for pod in pods:
            cluster.remove_pod(pod)
        pods = nodes(cluster, attempt=1)
        cluster.write(pods[0], "resuming at step 1", "step 2")
        finish(cluster, pods)

    run(story)
    out = capsys.readouterr().out
    assert out.count("start again from their last checkpoint (attempt 2)") == 1
    assert "step 1\n" in out and out.endswith("resuming at step 1\nstep 2\n")


def test_a_job_that_waits_for_its_quota_says_so(cluster, capsys):
    def story():
        cluster.job()
        cluster.condition(NAME, "Suspended", "TrainJob is suspended")
        cluster.condition(NAME, "Suspended", "TrainJob is suspended")
        finish(cluster, nodes(cluster))

    run(story)
    assert capsys.readouterr().out.count("waits to be admitted: TrainJob is suspended") == 1


def test_a_job_that_somebody_deleted_is_a_failure(cluster):
    def story():
        nodes(cluster)
        cluster.delete(NAME, "Background")

    with pytest.raises(SystemExit, match="was deleted, not by this task"):
        run(story)


def test_what_the_cluster_refuses_is_one_line(cluster):
    cluster.refuse = (403, 'trainjobs "x" is forbidden: exceeded quota: stagecraft, requested: requests.nvidia.com/gpu=64')
    with pytest.raises(UserError, match="exceeded quota") as caught:
        run()
    assert "\n" not in str(caught.value) and "quota is not used up" in str(caught.value)


def test_without_the_runtime_it_is_one_line(cluster):
    cluster.objects["trainingruntimes"].clear()
    with pytest.raises(UserError, match=r"stagecraft: the cluster refuses .*stagecraft-train.* not found - apply k8s/"):
        run()


def test_sizes_other_than_the_runtimes(cluster, monkeypatch, capsys):
    smaller = {"resources": {"limits": SIZES | {"memory": "400Gi"}}}
    monkeypatch.setenv(TASK_VARIABLE, json.dumps(TASK | smaller))
    with pytest.raises(UserError, match=r"stagecraft-train: a node of the runtime has claims.*memory 400Gi \(there 800Gi\)"):
        run()
    assert not created(cluster)
    hopper = deployed("TrainingRuntime", "stagecraft-train", "hopper")  # no claims: Trainer takes the rest from the runtime
    cluster.objects["trainingruntimes"][hopper["metadata"]["name"]] = hopper
    asked = []

    def story():
        asked.append(json.loads(json.dumps(cluster.job())))
        finish(cluster, nodes(cluster))

    run(story)
    assert asked[0]["spec"]["trainer"]["resourcesPerNode"]["limits"] == smaller["resources"]["limits"]
    said = capsys.readouterr().out
    assert "every node reserves memory 1500Gi, nvidia.com/gpu 8 whatever is asked: its container doctor keeps the runtime's sizes" in said


def test_a_task_without_its_config_is_one_line(cluster, monkeypatch):
    monkeypatch.setenv(TASK_VARIABLE, "{}")
    with pytest.raises(UserError, match="handed no resources"):
        run()
