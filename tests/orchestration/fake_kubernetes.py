"""As much of a Kubernetes API server as a TrainJob touches, on threads, behaving as the real one does where that is what goes wrong:

- a watch goes on from a resourceVersion, ends at its timeout, and is told 410 Gone when that version is forgotten;
- a name is taken once (409), and stays taken while what it stands for is being deleted, its pods before itself;
- what the account's Role does not name is forbidden (403);
- a log is followed until its container ends; with time stamps, a tail, or the last seconds only;
- connections break, and the server is away or overloaded, when a test says so.

What controllers and kubelets do is for the test to say: `pod`, `write`, `end`, `condition`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob

START = datetime(2026, 1, 1, tzinfo=UTC)


class Cluster:
    """What the server knows. Every public method is one change that watchers see."""

    def __init__(self, runtime: dict, role: dict):
        self.rights = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.version = 1
        self.objects: dict[str, dict[str, dict]] = {"trainjobs": {}, "trainingruntimes": {runtime["metadata"]["name"]: runtime}, "pods": {}}
        self.history: list[tuple[int, str, str, dict]] = []
        self.forgotten = 0
        self.logs: dict[str, list[tuple[str, str]]] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[int] = []  # statuses for the next requests; 0 breaks the connection
        self.break_streams = 0
        self.refuse: tuple[int, str] | None = None  # of the next creation
        self.grace = 0.0  # seconds that pods take to end
        self.clock = START

    def record(self, kind: str, change: str, item: dict) -> None:
        with self.lock:
            self.version += 1
            item["metadata"]["resourceVersion"] = str(self.version)
            if change == "DELETED":
                self.objects[kind].pop(item["metadata"]["name"], None)
            else:
                self.objects[kind][item["metadata"]["name"]] = item
            self.history.append((self.version, kind, change, json.loads(json.dumps(item))))
            self.changed.notify_all()

    def forget(self) -> None:
        """Compaction: whoever watches from an older version must list again. Open streams end."""
        with self.lock:
            self.version += 1
            self.forgotten = self.version
            self.break_streams += 1
            self.changed.notify_all()

    def job(self, seconds: float = 60) -> dict:
        """The one TrainJob, once it is there."""
        return self.wait(lambda: next(iter(self.objects["trainjobs"].values()), None), seconds)

    def wait(self, what, seconds: float = 60):
        with self.changed:
            assert self.changed.wait_for(what, seconds), "it did not come to that"
            return what()

    def condition(self, name: str, kind: str, message: str = "", status: str = "True") -> None:
        with self.lock:
            job = self.objects["trainjobs"][name]
            job.setdefault("status", {}).setdefault("conditions", []).append(
                {"type": kind, "status": status, "message": message, "reason": kind, "lastTransitionTime": "2026-01-01T00:00:00Z"})
            self.record("trainjobs", "MODIFIED", job)

    def pod(self, job: str, node: int, attempt: int = 0) -> str:
        """A pod of a node, running; returns its name."""
        self.clock += timedelta(seconds=1)
        name = f"{job}-node-0-{node}-{self.version:05d}"
        labels = {"jobset.sigs.k8s.io/jobset-name": job, "jobset.sigs.k8s.io/replicatedjob-name": "node",
                  "batch.kubernetes.io/job-completion-index": str(node), "jobset.sigs.k8s.io/restart-attempt": str(attempt)}
        self.logs[name] = []
        self.record("pods", "ADDED", {
            "apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "node"}]},
            "metadata": {"name": name, "namespace": "stagecraft", "labels": labels, "uid": f"uid-{name}",
                         "creationTimestamp": self.clock.strftime("%Y-%m-%dT%H:%M:%SZ")},
            "status": {"phase": "Pending"}})
        self.status(name, "Running", {"running": {}})
        return name

    def status(self, name: str, phase: str, state: dict) -> None:
        with self.lock:
            item = self.objects["pods"][name]
            item["status"] = {"phase": phase, "containerStatuses": [{"name": "node", "state": state}]}
            self.record("pods", "MODIFIED", item)

    def write(self, name: str, *lines: str) -> None:
        with self.lock:
            for line in lines:
                self.clock += timedelta(microseconds=100)
                self.logs[name].append((self.clock.strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z", line))
            self.changed.notify_all()

    def end(self, name: str, code: int) -> None:
        with self.lock:
            self.clock += timedelta(seconds=1)
            self.status(name, "Failed" if code else "Succeeded", {"terminated": {
                "exitCode": code, "reason": "Error" if code else "Completed", "finishedAt": self.clock.strftime("%Y-%m-%dT%H:%M:%SZ")}})

    def remove_pod(self, name: str) -> None:
        with self.lock:
            self.record("pods", "DELETED", self.objects["pods"][name])

    def delete(self, name: str, policy: str) -> None:
        """With foreground propagation the job stays until its pods are gone."""
        with self.lock:
            job = self.objects["trainjobs"][name]
            job["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z", finalizers=["foregroundDeletion"])
            job["policy"] = policy
            self.record("trainjobs", "MODIFIED", job)
        threading.Timer(self.grace, self._gone, [name]).start()

    def _gone(self, name: str) -> None:
        with self.lock:
            for pod in [pod for pod in self.objects["pods"] if pod.startswith(f"{name}-")]:
                self.remove_pod(pod)
            self.record("trainjobs", "DELETED", self.objects["trainjobs"][name])

    def create(self, job: dict) -> tuple[int, dict]:
        with self.lock:
            name = job["metadata"]["name"]
            if self.refuse:
                (code, message), self.refuse = self.refuse, None
                return code, failure(code, message)
            if name in self.objects["trainjobs"]:
                leaving = "object is being deleted: " if "deletionTimestamp" in self.objects["trainjobs"][name]["metadata"] else ""
                return 409, failure(409, f'{leaving}trainjobs.trainer.kubeflow.org "{name}" already exists')
            if TrainerV1alpha1TrainJob.from_dict(job).to_dict() != job:
                return 422, failure(422, "strict decoding error: unknown field")
            job["metadata"].update(namespace="stagecraft", uid=f"uid-{self.version}", creationTimestamp="2026-01-01T00:00:00Z")
            self.record("trainjobs", "ADDED", job)
            return 201, job


def failure(code: int, message: str) -> dict:
    reason = {404: "NotFound", 409: "AlreadyExists", 410: "Expired", 403: "Forbidden", 422: "Invalid"}.get(code, "InternalError")
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code}


def selected(item: dict, query: dict[str, str]) -> bool:
    labels = [part.split("=") for part in query.get("labelSelector", "").split(",") if part]
    if any(item["metadata"].get("labels", {}).get(key) != value for key, value in labels):
        return False
    fields = [part.split("=") for part in query.get("fieldSelector", "").split(",") if part]
    return all(key == "metadata.name" and item["metadata"]["name"] == value for key, value in fields)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.serve("GET")

    def do_POST(self):
        self.serve("POST")

    def do_DELETE(self):
        self.serve("DELETE")

    def serve(self, method: str) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        cluster = self.cluster
        with cluster.lock:
            cluster.requests.append((method, self.path))
            cluster.changed.notify_all()
            fault = cluster.faults.pop(0) if cluster.faults else None
        if fault == 0:
            self.close_connection = True
            return self.connection.close()
        if fault:
            return self.answer(fault, failure(fault, "the server is currently unable to handle the request"))
        parts = url.path.strip("/").split("/")
        parts = parts[parts.index("namespaces") + 2:] if "namespaces" in parts else [""]
        resource = "/".join([parts[0], *parts[2:]])
        verb = {"POST": "create", "DELETE": "delete"}.get(method) or ("watch" if "watch" in query else "list" if len(parts) == 1 else "get")
        if (resource, verb) not in cluster.rights:
            return self.answer(403, failure(403, f'User "pipeline-runner" cannot {verb} resource "{resource}" in the namespace'))
        match method, parts:
            case "POST", ["trainjobs"]:
                self.answer(*cluster.create(body))
            case "DELETE", ["trainjobs", name]:
                with cluster.lock:
                    there = name in cluster.objects["trainjobs"]
                if there:
                    cluster.delete(name, query.get("propagationPolicy") or body.get("propagationPolicy", "Background"))
                self.answer(200 if there else 404, failure(404, f"{name} not found"))
            case "GET", ["pods", name, "log"]:
                self.log(name, query)
            case "GET", [("trainjobs" | "pods" | "trainingruntimes") as kind, name]:
                with cluster.lock:
                    item = json.loads(json.dumps(cluster.objects[kind].get(name)))
                self.answer(200 if item else 404, item or failure(404, f'{kind} "{name}" not found'))
            case "GET", [("trainjobs" | "pods") as kind] if query.get("watch") == "True":
                self.watch(kind, query)
            case "GET", [("trainjobs" | "pods") as kind]:
                with cluster.lock:
                    items = [item for item in json.loads(json.dumps(cluster.objects[kind])).values() if selected(item, query)]
                    self.answer(200, {"kind": "List", "metadata": {"resourceVersion": str(cluster.version)}, "items": items})
            case _:
                self.answer(404, failure(404, f"nothing at {self.path}"))

    def answer(self, code: int, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def watch(self, kind: str, query: dict[str, str]) -> None:
        cluster, version = self.cluster, int(query["resourceVersion"])
        until = time.monotonic() + float(query["timeoutSeconds"])
        self.begin()
        with cluster.lock:
            breaks = cluster.break_streams
        while time.monotonic() < until:
            with cluster.changed:
                if version < cluster.forgotten:
                    self.chunk(json.dumps({"type": "ERROR", "object": failure(410, f"too old resource version: {version}")}) + "\n")
                    break
                if cluster.break_streams != breaks:
                    self.close_connection = True
                    return self.connection.close()
                news = [entry for entry in cluster.history if entry[0] > version and entry[1] == kind and selected(entry[3], query)]
                if not news:
                    cluster.changed.wait(0.2)
            for made, _, change, item in news:
                self.chunk(json.dumps({"type": change, "object": item}) + "\n")
                version = made
        self.chunk("")

    def log(self, name: str, query: dict[str, str]) -> None:
        cluster = self.cluster
        with cluster.lock:
            if name not in cluster.objects["pods"]:
                return self.answer(404, failure(404, f'pods "{name}" not found'))
            breaks, lines = cluster.break_streams, cluster.logs[name]
            sent = len(lines) - min(int(query["tailLines"]), len(lines)) if "tailLines" in query else 0
        self.begin()
        while True:
            with cluster.changed:
                new, over = lines[sent:], "terminated" in json.dumps(cluster.objects["pods"].get(name, "terminated"))
                if cluster.break_streams != breaks:
                    self.close_connection = True
                    return self.connection.close()
                if not new and over:
                    break
                if not new:
                    cluster.changed.wait(0.2)
            sent += len(new)
            for stamp, text in new:
                self.chunk(f"{stamp} {text}\n" if query.get("timestamps") == "True" else f"{text}\n")
        self.chunk("")


@contextmanager
def fake_kubernetes(runtime: dict, role: dict, directory: Path) -> Iterator[tuple[Cluster, Path]]:
    """Serve an account that has `role`; yields the cluster and a kubeconfig that leads to it."""
    cluster = Cluster(runtime, role)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"cluster": cluster}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = directory / "kubeconfig"
    config.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "fake", "users": [{"name": "fake", "user": {"token": "t"}}],
        "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": "kubeflow"}}]}))
    try:
        yield cluster, config
    finally:
        server.shutdown()
        server.server_close()
