"""`kfp run --docker`: each task in a container of its stage's image, as locked up as the pods of a cluster, on this machine's engine.

KFP's DockerRunner conducts; what starts and ends a container is ours. Its own function (kfp/local/docker_task_handler.py of 2.17.0) has the
engine remove the container at its end and takes one that is gone for a success, which over podman's socket every failure is; and it would
pull an image that nobody has built.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound
from docker.models.containers import Container
from kfp.local import DockerRunner, docker_task_handler
from kfp.local.status import Status

from stagecraft.contract.errors import UserError

LABEL = "dev.stagecraft.run"
SCRATCH = "/scratch"  # of the images (components/Containerfile): the one place outside the project where a task writes
_PASSED = ("STAGECRAFT_", "MLFLOW_", "OMP_", "RAY_ADDRESS")
_GRACE_SECONDS = 20


class Engine:
    """The engine behind `$DOCKER_HOST` (Docker, or podman's service), for one run of a pipeline.

    Args:
        outside: paths beside the project that its tasks see.
        variables: of the environment, that its tasks have beside ours.

    Raises:
        UserError: none answers, or an image of the pipeline is not there.
    """

    def __init__(self, root: Path, images: Iterable[str], outside: Iterable[Path] = (), variables: Iterable[str] = ()):
        self._root, self._outside, self._variables, self._run = root, list(outside), set(variables), uuid4().hex
        address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        try:
            self._client = docker.from_env()
            self._rootless = any("rootless" in option for option in self._client.info().get("SecurityOptions") or ())
            for image in images:
                self._client.images.get(image)
        except ImageNotFound:
            stage = image.rpartition("/")[2].partition(":")[0].removeprefix("stagecraft-")
            raise UserError("no such image", where=image, mend=f"build it: make images STAGES={stage}") from None
        except (DockerException, requests.RequestException):
            raise UserError("no container engine answers", where=address,
                            mend="start Docker, or `podman system service --time 0 unix:///tmp/podman.sock` and set DOCKER_HOST") from None

    @contextlib.contextmanager
    def runner(self) -> Iterator[DockerRunner]:
        """What kfp.local is given; containers that are left when the body ends are ended."""
        engine = self

        class Task(docker_task_handler.DockerTaskHandler):
            """A task in its container."""

            def run(self) -> Status:
                return engine._task(self.image, self.full_command, self.env_vars, self.runner.container_run_args)

        stock = docker_task_handler.DockerTaskHandler
        docker_task_handler.DockerTaskHandler = Task
        try:
            yield DockerRunner(**self.settings())
        finally:
            docker_task_handler.DockerTaskHandler = stock
            self._end()

    def settings(self) -> dict[str, Any]:
        """How a container is run: nothing on its root can be written, no capability is left, and the project lies where it lies here.

        It works under the project's owner, so that what it writes is theirs; an engine without root has them as its user 0. The network
        is this machine's, for an MLflow server or a model's endpoint on it.
        """
        owner = self._root.stat()
        caches = self._root / ".work" / "cache"  # kernels compiled in one container serve the next
        return {
            "user": "0:0" if self._rootless else f"{owner.st_uid}:{owner.st_gid}",
            "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"],
            "tmpfs": {SCRATCH: "mode=1777,exec"}, "shm_size": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 2}",
            "network_mode": "host", "working_dir": str(self._root), "labels": {LABEL: self._run},
            "environment": {**{name: value for name, value in os.environ.items() if name.startswith(_PASSED) or name in self._variables},
                            "XDG_CACHE_HOME": str(caches), "PYTHONPATH": str(self._root)},
        }

    def _task(self, image: str, command: list[str], environment: Mapping[str, str], settings: Mapping[str, Any]) -> Status:
        volumes = {str(self._root): {"bind": str(self._root), "mode": "rw"},
                   **{str(path): {"bind": str(path), "mode": "ro"} for path in self._outside}}
        try:
            container = self._client.containers.run(image, command, detach=True, volumes=volumes, environment=dict(environment), **settings)
        except APIError as error:
            said = error.explanation or error
            raise UserError(f"the container engine refuses: {said}", where=image, mend="see the engine's log") from None
        try:
            told, rest = 0, b""
            for part in container.logs(stream=True):  # which may end within a line
                told += len(part)
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    print(line.decode(errors="replace"))
            status = container.wait()["StatusCode"]
            late = container.logs()[told:]  # podman's stream may end before the last lines are in it
            print((rest + late).decode(errors="replace"), end="")
            return Status.SUCCESS if status == 0 else Status.FAILURE
        finally:
            _end(container)

    def _end(self) -> None:
        for container in self._client.containers.list(all=True, filters={"label": f"{LABEL}={self._run}"}):
            _end(container)
        self._client.close()


def _end(container: Container) -> None:
    """Remove a container; if it still runs, ask its processes to stop, as Ctrl-C would, and after a while make them."""
    with contextlib.suppress(APIError, requests.RequestException):  # it may end meanwhile, or not in time
        container.reload()
        if container.status == "running":
            container.exec_run(["sh", "-c", "kill -INT -1"])
            container.kill("SIGINT")  # the first process, which the other call leaves out
            container.wait(timeout=_GRACE_SECONDS)
    with contextlib.suppress(APIError):
        container.remove(force=True)


def images_of(pipeline: Any) -> list[str]:
    """The images of a pipeline's tasks, each once."""
    executors = dict(pipeline.pipeline_spec.deployment_spec)["executors"]
    return sorted({spec["container"]["image"] for spec in executors.values() if "container" in spec})


def key_variables(values: Any) -> set[str]:
    """The variables that a nested value says keys of endpoints are in: every `key_variable` in it."""
    if not isinstance(values, Mapping):
        return set()
    own = {values["key_variable"]} if values.get("key_variable") else set()
    return own.union(*map(key_variables, values.values()))


def named_outside(root: Path, values: Any) -> list[Path]:
    """The existing absolute paths among the strings of a nested value that do not lie in the project: a task has to see them too."""
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, (list, tuple)):
        return sorted({path for value in values for path in named_outside(root, value)})
    path = Path(values.removeprefix("file://")) if isinstance(values, str) else None
    return [path] if path and path.is_absolute() and path.exists() and not path.is_relative_to(root) else []
