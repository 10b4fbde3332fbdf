"""Follows a TrainJob to its end: its state, the log of its first node, and what every other node said last."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend
from kubeflow.trainer.constants import constants
from kubernetes.client import ApiException

from stagecraft.contract.errors import EXIT_USER_ERROR, UserError
from stagecraft.contract.watching import Log, changes, listed, patiently

ATTEMPT = "jobset.sigs.k8s.io/restart-attempt"
_RECENT_LINES = 20  # of a log that an earlier task has followed
_DRAIN_SECONDS = 30
_POLL_SECONDS = 0.5
_MISTAKE = "error: "  # how a stage says a user's mistake (stagecraft/contract/errors.py)


class JobError(Exception):
    """The job failed, through no mistake that a stage has named."""


@dataclass
class End:
    """How a container ended that did not end well."""

    node: int
    attempt: int
    made: str
    code: int
    reason: str
    time: str
    log: Log


def trainjobs(backend: KubernetesBackend) -> dict[str, Any]:
    """Where TrainJobs are, for calls of the client for custom objects."""
    return {"group": constants.GROUP, "version": constants.VERSION, "namespace": backend.namespace, "plural": constants.TRAINJOB_PLURAL}


class Follower:
    """One job under way.

    Args:
        attached: an earlier task has followed it already.
        say: called with every line of the first node, and with what happens to the job.
    """

    def __init__(self, backend: KubernetesBackend, name: str, attached: bool, say: Callable[[str], None]):
        self._backend, self._name, self._say = backend, name, say
        self._recent = _RECENT_LINES if attached else None
        self._pods = {"namespace": backend.namespace, "label_selector": f"{constants.JOBSET_NAME_LABEL}={name}"}
        self._news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._logs: dict[tuple[str, str], Log] = {}
        self._ends: dict[tuple[str, str], End] = {}
        self._made: dict[int, str] = {}  # node: when its newest pod was made
        self._said: set[str] = set()

    def run(self) -> None:
        """Follow; returns when the job is complete.

        Raises:
            UserError: a rank ended with exit code 2.
            JobError: the job failed, or somebody deleted it.
            ApiException: the server refuses.
        """
        watched = [("job", self._backend.custom_api.list_namespaced_custom_object,
                    {**trainjobs(self._backend), "field_selector": f"metadata.name={self._name}"}),
                   ("pod", self._backend.core_api.list_namespaced_pod, self._pods)]
        for kind, ask, selection in watched:
            threading.Thread(target=self._watch, args=(kind, ask, selection), name=f"watch of {kind}s", daemon=True).start()
        try:
            while not self._take(*self._news.get()):
                pass
        finally:
            self._ending.set()
            for log in self._logs.values():
                log.finish(0)

    def _watch(self, kind: str, ask: Callable[..., Any], selection: dict[str, Any]) -> None:
        try:
            for change, found in changes(ask, self._ending, **selection):
                if change == "LIST" and kind == "job" and not found:
                    self._news.put(("gone", None))
                for item in found if change == "LIST" else [found]:
                    self._news.put(("gone" if (kind, change) == ("job", "DELETED") else kind, item))
        except Exception as error:  # the thread's boundary: `run` raises it
            self._news.put(("error", error))

    def _take(self, kind: str, item: Any) -> bool:
        """One piece of news; says whether the job is complete."""
        match kind:
            case "error":
                raise item
            case "gone":
                raise JobError(f"TrainJob {self._name} was deleted, not by this task")
            case "pod":
                self._pod(item)
            case "job":
                states = {entry["type"]: entry for entry in item.get("status", {}).get("conditions", ()) if entry["status"] == "True"}
                if "Suspended" in states:
                    self._once(f"TrainJob {self._name} waits to be admitted: {states['Suspended'].get('message', '')}")
                if {constants.TRAINJOB_COMPLETE, constants.TRAINJOB_FAILED} & states.keys():
                    for pod in listed(self._backend.core_api.list_namespaced_pod, **self._pods):
                        self._pod(pod)  # this news may have overtaken theirs
                if constants.TRAINJOB_COMPLETE in states:
                    for log in self._logs.values():
                        log.finish(_DRAIN_SECONDS if log.heard else 0)
                    return True
                if constants.TRAINJOB_FAILED in states:
                    self._fail(states[constants.TRAINJOB_FAILED].get("message", ""))
        return False

    def _once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)

    def _pod(self, pod: dict[str, Any]) -> None:
        labels, status = pod["metadata"]["labels"], pod.get("status", {})
        node, attempt = int(labels.get(constants.JOB_INDEX_LABEL, 0)), int(labels.get(ATTEMPT, 0))
        made = pod["metadata"]["creationTimestamp"]
        self._made[node] = max(made, self._made.get(node, made))
        if attempt:
            self._once(f"all ranks start again from their last checkpoint (attempt {attempt + 1})")
        for entry in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
            key, ended = (pod["metadata"]["uid"], entry["name"]), entry["state"].get("terminated")
            if key not in self._logs and (ended or "running" in entry["state"]):
                first = node == 0 and entry["name"] == constants.NODE
                for log in self._logs.values():
                    if first and log.heard:
                        log.finish(_DRAIN_SECONDS)  # else the last lines of the attempt before come among those of this one
                opened = Log(self._backend.core_api, self._backend.namespace, pod["metadata"]["name"], entry["name"],
                             say=self._say if first else None, recent=self._recent)
                opened.start()  # before it is known: a signal in between would have it finished without having begun
                self._logs[key] = opened
            if ended and ended["exitCode"] and key not in self._ends:
                end = self._ends[key] = End(node, attempt, made, ended["exitCode"], ended.get("reason", ""), ended.get("finishedAt", ""),
                                            self._logs[key])
                if end.code == EXIT_USER_ERROR:
                    raise _mistake(end)

    def _fail(self, message: str) -> None:
        """The node that failed first, of the last attempt: what follows on others is mostly that they lost it.

        Pods that were replaced within an attempt do not count: Kueue had ended them, to make room or because not all were ready.
        """
        ends = [end for end in self._ends.values() if end.made == self._made[end.node]]
        if not ends:
            raise JobError(f"TrainJob {self._name} failed: {message}")
        end = min(ends, key=lambda end: (-end.attempt, end.time, end.node))
        end.log.finish(_DRAIN_SECONDS)
        lines = "\n".join(f"  {line}" for line in end.log.tail)
        raise JobError(f"TrainJob {self._name} failed: {message}\nnode {end.node} ended first, with exit code {end.code} ({end.reason}); "
                     f"its last lines:\n{lines}")


def _mistake(end: End) -> UserError:
    end.log.finish(_DRAIN_SECONDS)
    said = [line.removeprefix(_MISTAKE) for line in end.log.tail if line.startswith(_MISTAKE)]
    return UserError(said[-1] if said else f"node {end.node} ended with exit code {end.code}: {' '.join(list(end.log.tail)[-1:])}")


def trainjob(backend: KubernetesBackend, name: str) -> dict[str, Any] | None:
    try:
        return patiently(lambda: backend.custom_api.get_namespaced_custom_object(**trainjobs(backend), name=name))
    except ApiException as error:
        if error.status == 404:
            return None
        raise


def wait_until_gone(backend: KubernetesBackend, name: str, seconds: float) -> None:
    """Wait until a job that is being deleted, with all that belongs to it, is no more.

    Raises:
        JobError: it is still there after that time.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if trainjob(backend, name) is None:
            return
        time.sleep(_POLL_SECONDS)
    raise JobError(f"TrainJob {name} was deleted and is still there after {seconds:.0f} s: kubectl -n {backend.namespace} get trainjobs")
