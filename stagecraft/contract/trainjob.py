"""A stage on several nodes: its command starts a TrainJob whose ranks run the same command, and follows it as if it ran here.

Ranks see the task's clone under the same path, on the volume that both mount; what they write there is what DVC finds. The job is named
after the clone, hence after the work: a task that is started again finds the job that still runs.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from kubeflow.common.types import KubernetesBackendConfig
from kubeflow.trainer import TrainerClient
from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend
from kubeflow.trainer.constants import constants
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from stagecraft.contract.cluster import TASK_VARIABLE, TRAINJOB_VARIABLE, Job
from stagecraft.contract.errors import UserError
from stagecraft.contract.events import emit
from stagecraft.contract.following import Follower, JobError, trainjob, trainjobs, wait_until_gone
from stagecraft.contract.jobspec import ASKED, wanted
from stagecraft.contract.params import parse, read_profile
from stagecraft.contract.stages import STAGES
from stagecraft.contract.watching import patiently

# Made by k8s/base/stagecraft.
NAMESPACE = "stagecraft"
RUNTIME = "stagecraft-train"
_CANCELLED = 128 + signal.SIGTERM
_TRIES = 5
_GONE_SECONDS = 300  # the ranks' grace period, and more


class Cancelled(BaseException):
    """The task was told to end."""


def run_on_nodes(stage: str) -> None:
    """Run a stage as a TrainJob, from its clone as the current directory; returns when its outputs are there.

    The process ends with exit code 1 if the job failed, showing the last lines of the node that failed first, and with 143 on SIGTERM,
    having deleted the job.

    Raises:
        UserError: a rank met a user's mistake, or the cluster refuses the job.
    """
    tree = Path.cwd()
    name = tree.name
    job = parse(Job, json.loads(os.environ[TRAINJOB_VARIABLE]), TRAINJOB_VARIABLE)
    task = json.loads(os.environ.get(TASK_VARIABLE, "{}"))
    backend = _backend()
    emit("open", stage=stage)
    with _told_to_end(), _in_words(name):
        try:
            asked = wanted(name, stage, job, task, _runtime(backend), tree, read_profile()[stage])
            attached = _start(backend, name, asked, tree / STAGES[stage].metrics_path)
            Follower(backend, name, attached, _say).run()
            _delete(backend, name)
        except Cancelled:
            _delete(backend, name)
            print(f"cancelled: TrainJob {name} is deleted", file=sys.stderr, flush=True)
            sys.exit(_CANCELLED)
        except UserError:
            _delete(backend, name)  # else all nodes would start again, for the same mistake
            raise


def end_job() -> None:
    """End the job of the clone that is the current directory, if there is one: what it was to make is there.

    Raises:
        UserError: the cluster refuses.
    """
    backend, name = _backend(), Path.cwd().name
    with _in_words(name):
        _delete(backend, name)
        wait_until_gone(backend, name, _GONE_SECONDS)


def _backend() -> KubernetesBackend:
    logging.getLogger("kubeflow").setLevel(logging.ERROR)  # it warns where it may not read the version of the control plane
    return TrainerClient(backend_config=KubernetesBackendConfig(namespace=NAMESPACE)).backend


@contextmanager
def _in_words(name: str) -> Iterator[None]:
    try:
        yield
    except JobError as error:
        sys.exit(str(error))
    except ApiException as error:
        raise _refused(error, name) from None
    except HTTPError as error:
        sys.exit(f"the API server does not answer: {error}")


@contextmanager
def _told_to_end() -> Iterator[None]:
    def end(number: int, frame: object) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # once is enough: what follows is the tidying
        raise Cancelled

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    print(line, flush=True)


def _runtime(backend: KubernetesBackend) -> dict[str, Any]:
    where = {**trainjobs(backend), "plural": constants.TRAINING_RUNTIME_PLURAL}
    return patiently(lambda: backend.custom_api.get_namespaced_custom_object(**where, name=RUNTIME))


def _start(backend: KubernetesBackend, name: str, asked: dict[str, Any], made: Path) -> bool:
    """Have the job under way; says whether it was already.

    A job of the same name that has failed, or was asked to be another (nodes, image, sizes, parameters), makes room first; so does one
    that is complete though nothing of what it made (`made`) is there any more.
    """
    digest = next(option.annotations[ASKED] for option in asked["options"] if hasattr(option, "annotations"))
    for _ in range(_TRIES):
        try:
            patiently(lambda: _create(backend, asked))
        except ApiException as error:
            if error.status != 409:
                raise
        else:
            _say(f"started TrainJob {name}: {asked['trainer'].num_nodes} nodes")
            return False
        found = trainjob(backend, name)
        if found is None:
            continue
        states = {entry["type"] for entry in found.get("status", {}).get("conditions", ()) if entry["status"] == "True"}
        leaving = "deletionTimestamp" in found["metadata"]
        same = found["metadata"].get("annotations", {}).get(ASKED) == digest
        lost = constants.TRAINJOB_COMPLETE in states and not made.exists()
        if same and not leaving and not lost and constants.TRAINJOB_FAILED not in states:
            _say(f"TrainJob {name} is under way already; following it")
            return True
        _delete(backend, name)
        wait_until_gone(backend, name, _GONE_SECONDS)
    raise JobError(f"TrainJob {name} can be made no more than found: another task makes and deletes it")


def _create(backend: KubernetesBackend, asked: dict[str, Any]) -> None:
    try:
        backend.train(runtime=RUNTIME, **asked)
    except RuntimeError as error:  # the SDK's, around what the client raised
        raise (error.__cause__ or error) from None


def _delete(backend: KubernetesBackend, name: str) -> None:
    """Delete the job, its pods before itself. The SDK's call says nothing of what belongs to the job."""
    try:
        patiently(lambda: backend.custom_api.delete_namespaced_custom_object(
            **trainjobs(backend), name=name, propagation_policy="Foreground"))
    except ApiException as error:
        if error.status != 404:
            raise


def _refused(error: ApiException, name: str) -> UserError:
    """A refusal of the API server, in its own words."""
    try:
        said = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        said = error.reason
    mends = {403: "apply k8s/, which gives the tasks their role, and see that the quota is not used up",
             404: "apply k8s/ and install Kubeflow Trainer (docs/cluster.md)"}
    mend = mends.get(error.status, "mend what it says, in the profile or in k8s/")
    return UserError(f"the cluster refuses TrainJob {name}: {said}", where=NAMESPACE, mend=mend)
