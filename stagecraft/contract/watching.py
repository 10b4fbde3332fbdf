"""What is read from a Kubernetes API server for as long as a training lasts: changes of objects, logs of pods. Neither ends with a
connection.

The kubeflow SDK polls a job and reads a log once: a broken connection ends it, and so does a restart of the pod. Hence Kubernetes' own
client here.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from kubernetes.client import ApiException, CoreV1Api
from kubernetes.watch import Watch
from kubernetes.watch.watch import iter_resp_lines
from urllib3.exceptions import HTTPError

_WATCH_SECONDS = 240  # the server ends a watch after that; a connection that is dead without knowing it ends a little later
_LOG_SECONDS = 600  # a log that is silent for so long is asked for again: it may be the connection that is dead
_CONNECT_SECONDS = 10
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0
_FINAL = (400, 401, 403, 404, 405, 422)  # statuses that another try does not change
_GONE, _BUSY = 410, 429
_PATIENT_SECONDS = 60.0
TAIL_LINES = 40


class Patience:
    """Growing pauses between tries that fail; a success starts over."""

    def __init__(self) -> None:
        self._pause = _FIRST_PAUSE

    def wait(self, ending: threading.Event) -> None:
        ending.wait(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def reset(self) -> None:
        self._pause = _FIRST_PAUSE


def patiently(call: Callable[[], Any]) -> Any:
    """The result of a call to an API server that may be away or overloaded for so long.

    Raises:
        ApiException, HTTPError: it refuses, or is away for longer.
    """
    ending, patience, until = threading.Event(), Patience(), time.monotonic() + _PATIENT_SECONDS
    while True:
        try:
            return call()
        except (ApiException, HTTPError) as error:
            if time.monotonic() > until or (isinstance(error, ApiException) and error.status < 500 and error.status != _BUSY):
                raise
            patience.wait(ending)


def listed(ask: Callable[..., Any], **selection: Any) -> list[Any]:
    """The objects that a list call finds now, as plain data."""
    return patiently(lambda: _list(ask, selection))["items"]


def _list(ask: Callable[..., Any], selection: dict[str, Any]) -> dict[str, Any]:
    return json.loads(ask(**selection, _preload_content=False, _request_timeout=(_CONNECT_SECONDS, _WATCH_SECONDS)).data)


def changes(ask: Callable[..., Any], ending: threading.Event, **selection: Any) -> Iterator[tuple[str, Any]]:
    """Follow the objects that a list call finds, until `ending` is set.

    Args:
        ask: a list method of a Kubernetes API object.
        selection: its arguments (namespace, selectors).

    Yields:
        ("LIST", all objects) at first and whenever changes may have been missed (410 Gone), and ("ADDED" | "MODIFIED" | "DELETED", object)
        in between, each object as plain data.

    Raises:
        ApiException: the server refuses (wrong request, no right, no such kind). One that is away or overloaded is asked again.
    """
    version, patience = None, Patience()
    while not ending.is_set():
        try:
            if version is None:
                found = _list(ask, selection)
                version = found["metadata"]["resourceVersion"]
                yield "LIST", found["items"]
            asked = time.monotonic()
            for event in Watch(return_type="object").stream(
                    ask, **selection, resource_version=version, timeout_seconds=_WATCH_SECONDS, allow_watch_bookmarks=True,
                    _request_timeout=(_CONNECT_SECONDS, _WATCH_SECONDS + 30)):
                patience.reset()
                version = event["raw_object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    yield event["type"], event["raw_object"]
            if time.monotonic() - asked < 1:  # a server that has no time to keep a watch
                patience.wait(ending)
        except ApiException as error:
            if error.status == _GONE:
                version = None
            elif error.status in _FINAL:
                raise
            patience.wait(ending)
        except (HTTPError, OSError, ValueError):  # refused, broken off, timed out; half a line of JSON
            patience.wait(ending)


class Log(threading.Thread):
    """Follows the log of one container to its end, over broken connections; `tail` holds the last lines.

    Args:
        say: called with every line; None keeps the tail alone.
        recent: begin with so many lines of what is there already; None: from the start.
    """

    def __init__(self, core: CoreV1Api, namespace: str, pod: str, container: str, *, say: Callable[[str], None] | None, recent: int | None):
        super().__init__(name=f"log of {pod}", daemon=True)
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._core, self._say, self._recent = core, say, recent
        self._where = {"namespace": namespace, "name": pod}
        self._container = container
        self._ending = threading.Event()
        self._last, self._at_last = "", 0  # newest time stamp, and how many lines have it

    def run(self) -> None:
        patience, heard = Patience(), None
        while not self._ending.is_set():
            begin = {"tail_lines": self._recent} if heard is None else {"since_seconds": int(time.monotonic() - heard) + 2}
            try:
                answer = self._core.read_namespaced_pod_log(
                    **self._where, container=self._container, follow=True, timestamps=True, _preload_content=False,
                    _request_timeout=(_CONNECT_SECONDS, _LOG_SECONDS), **{key: value for key, value in begin.items() if value is not None})
                asked, repeated = time.monotonic(), 0
                heard = heard or asked
                for line in iter_resp_lines(answer):
                    stamp, _, text = line.partition(" ")
                    if stamp == self._last:
                        repeated += 1
                    if stamp < self._last or (stamp == self._last and repeated <= self._at_last):
                        continue  # known from the connection before
                    self._at_last = repeated if stamp == self._last else 1
                    repeated = self._at_last
                    self._last, heard = stamp, time.monotonic()
                    patience.reset()
                    self._take(text)
                if self._over():
                    return
            except ApiException as error:
                if error.status == 404 or (error.status in _FINAL and error.status != 400):  # 400: the container is not there yet
                    return
            except (HTTPError, OSError):
                pass
            patience.wait(self._ending)

    def finish(self, seconds: float) -> None:
        """Wait for the end of the log, but no longer than that."""
        self.join(seconds)
        self._ending.set()

    @property
    def heard(self) -> bool:
        """Whether somebody is told every line."""
        return self._say is not None

    def _take(self, text: str) -> None:
        self.tail.append(text)
        if self._say:
            self._say(text)

    def _over(self) -> bool:
        """Whether the container has ended, so that its log is whole."""
        pod = json.loads(self._core.read_namespaced_pod(**self._where, _preload_content=False).data)
        status = pod.get("status", {})
        states = [entry["state"] for entry in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
                  if entry["name"] == self._container]
        return status.get("phase") in ("Succeeded", "Failed") or any("terminated" in state for state in states)
