"""`kfp run --docker`: the same run, each task in a container. Against podman's real service if STAGECRAFT_IMAGES=1."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from stagecraft.cli.containers import LABEL, named_outside
from stagecraft.cli.local import engine_for
from stagecraft.contract.images import image
from tests.images.engine import need_images, service
from tests.orchestration.conftest import copy
from tests.orchestration.test_mistakes import one_line


class BareEngine(BaseHTTPRequestHandler):
    """A Docker engine without a single image: what it answers is documented in Docker's API reference."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        found = {"/version": {"ApiVersion": "1.41"}, "/v1.41/info": {"SecurityOptions": ["name=seccomp,profile=default"]}}.get(path)
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(found or {"message": "No such image"}).encode())

    def log_message(self, *arguments: object) -> None: ...


@contextmanager
def bare_engine() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BareEngine)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"tcp://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def engine(tmp_path_factory) -> Iterator[str]:
    need_images()
    with service(tmp_path_factory.mktemp("engine")) as address:
        yield address


@pytest.fixture(scope="session")
def contained_project(fresh_project, engine, tmp_path_factory):
    """A project after `kfp run --docker pipelines/full.py`, with what the command printed."""
    project = copy(fresh_project, tmp_path_factory.mktemp("contained") / "project")
    done = project.kfp("--docker", DOCKER_HOST=engine)
    assert done.returncode == 0, done.stdout + done.stderr
    return project, done.stdout, project.executed()


def left() -> list[str]:
    """Containers of runs that are still there."""
    command = ["podman", "ps", "--all", "--quiet", "--filter", f"label={LABEL}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("address", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:9", "nonsense"])
def test_no_engine_is_one_line(fresh, address):
    line = one_line(fresh.kfp("--docker", DOCKER_HOST=address))
    assert line.startswith(f"error: {address}: no container engine answers - start Docker, or `podman system service")
    assert fresh.executed() == []


def test_an_image_that_nobody_built_is_one_line(fresh):
    with bare_engine() as address:
        line = one_line(fresh.kfp("--docker", DOCKER_HOST=address))
    assert line == f"error: {image('curate')}: no such image - build it: make images STAGES=curate"
    assert fresh.executed() == []


def test_paths_outside_the_project_are_found(tmp_path):
    root, other = tmp_path / "project", tmp_path / "other"
    (root / "inside").mkdir(parents=True)
    other.mkdir()
    values = [{"base_uri": str(other), "again": f"file://{other}", "count": 3},
              [str(root / "inside"), str(tmp_path / "none"), "inside", "system"]]
    assert named_outside(root, values) == [other]


def test_a_task_has_the_keys_that_the_profile_names_and_the_ray_cluster_but_nothing_else_of_the_users(tmp_path, monkeypatch):
    profile = tmp_path / "params.yaml"
    profile.write_text("curate: {synthetic: {endpoint: {key_variable: WRITER_KEY}}}\n"
                       "rl: {preferences: {key_variable: ''}, stages: {rlhf: {preferences: {key_variable: JUDGE_KEY}}}}\n")
    exported = {"WRITER_KEY": "w", "JUDGE_KEY": "j", "RAY_ADDRESS": "ray://head:10001", "ANOTHER_KEY": "a"}
    for name, value in {**exported, "STAGECRAFT_PARAMS": str(profile)}.items():
        monkeypatch.setenv(name, value)
    pipeline = SimpleNamespace(pipeline_spec=SimpleNamespace(deployment_spec={"executors": {}}))
    with bare_engine() as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        told = engine_for(pipeline, {}, tmp_path).settings()["environment"]
    assert {name: told[name] for name in exported if name in told} == {name: exported[name] for name in exported if name != "ANOTHER_KEY"}


def test_all_stages_run_in_containers(contained_project):
    project, shown, ran = contained_project
    assert ran == ["curate", "pretrain", "sft", "rl", "quantize", "evaluate", "serve"]
    assert "running here in containers" in shown and "serve" in shown
    assert left() == []
    log = next((project.root / ".work" / "logs").glob("*.log")).read_text()
    assert log.count("SUCCESS") == 8
    environment = json.loads((project.root / "artifacts" / "base" / "manifest.json").read_text())["environment"]
    assert "pytest" not in json.dumps(environment)


def test_what_ran_in_containers_is_unchanged_for_both(contained_project, engine, tmp_path):
    project = copy(contained_project[0], tmp_path / "project")
    assert "up to date" in project.dvc("status").stdout
    changed = project.kfp("--docker", "evaluate.amount=66", DOCKER_HOST=engine)
    assert changed.returncode == 0 and changed.stdout.count("unchanged, taken from the cache") == 5, changed.stdout + changed.stderr
    assert project.executed() == ["evaluate", "serve"]


def test_mistakes_and_defects_in_a_container(fresh, engine):
    fresh.edit("params.yaml", "fail: ''\nsft", "fail: user\nsft")
    assert one_line(fresh.kfp("--docker", DOCKER_HOST=engine)) == "error: corpus.txt: nothing to read - write something into it"
    assert fresh.executed() == ["curate", "pretrain"]
    fresh.edit("params.yaml", "fail: user", "fail: crash")
    done = fresh.kfp("--docker", DOCKER_HOST=engine)
    assert done.returncode == 1 and "RuntimeError: a defect of the stage" in done.stdout
    assert fresh.executed() == ["pretrain"]
    assert left() == []


def test_an_interrupted_run_leaves_no_container(fresh, engine):
    process = fresh.kfp_until_it_hangs("--docker", seconds=240, DOCKER_HOST=engine)
    assert len(left()) == 1
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130, out + err
    assert "interrupted in pretrain; finished stages stay finished (curate)" in out and "Traceback" not in out + err
    assert left() == []


def test_a_task_writes_nowhere_but_in_the_project(contained_project, engine):
    """What the engine was told, asked of a container that runs: read-only root, no capabilities, no new privileges."""
    project = contained_project[0]
    probe = "touch /opt/x 2>/dev/null && echo root; touch /scratch/x && echo scratch; grep -E 'CapEff|NoNewPrivs' /proc/self/status"
    import docker

    from stagecraft.cli.containers import Engine

    os.environ["DOCKER_HOST"] = engine
    try:
        settings = Engine(Path(project.root), [image("curate")]).settings()
        client = docker.from_env()
        container = client.containers.run(image("curate"), ["sh", "-c", probe], detach=True,
                                          volumes={str(project.root): {"bind": str(project.root), "mode": "rw"}}, **settings)
        container.wait()  # podman's stream of a running container may end before the last lines are in it
        told = container.logs().decode()
        container.remove()
        client.close()
    finally:
        del os.environ["DOCKER_HOST"]
    assert told.split() == ["scratch", "CapEff:", "0000000000000000", "NoNewPrivs:", "1"]
