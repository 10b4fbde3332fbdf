"""What Prometheus reads from a running stage: the newest point of every curve, and how far the work is."""

from __future__ import annotations

import os
import time
from typing import Any

from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import Sink

VARIABLE = "STAGECRAFT_METRICS_PORT"
PROGRESS = "progress"


def metrics_port() -> int | None:
    """The port named by `$STAGECRAFT_METRICS_PORT`, if one is.

    Raises:
        UserError: it is no port.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise UserError(f"{VARIABLE}={text} is no port", where="environment", mend="give a number from 1 to 65535, or unset it")
    return int(text)


class PrometheusSink(Sink):
    """Serves http://0.0.0.0:PORT/metrics while the stage runs.

    `stagecraft_value{stage,curve,key}` is the newest point of a curve, or a figure beside a bar (curve `progress`);
    `stagecraft_step{stage,curve}` the step it belongs to; `stagecraft_done` and `stagecraft_total{stage,work}` a bar, in its units;
    `stagecraft_progress_timestamp_seconds{stage}` when a point or a bar last moved. Not a number stays NaN, for alerts to see.

    Raises:
        UserError: the port is taken.
    """

    def __init__(self, port: int, stage: str):
        from prometheus_client import CollectorRegistry, Gauge, start_http_server

        registry = CollectorRegistry()
        self._stage, self._work = stage, ""
        self._value = Gauge("stagecraft_value", "Newest value of a curve", ["stage", "curve", "key"], registry=registry)
        self._step = Gauge("stagecraft_step", "Newest step of a curve", ["stage", "curve"], registry=registry)
        self._done = Gauge("stagecraft_done", "Units of work done", ["stage", "work"], registry=registry)
        self._total = Gauge("stagecraft_total", "Units of work in all", ["stage", "work"], registry=registry)
        self._moved = Gauge("stagecraft_progress_timestamp_seconds", "When work last moved on", ["stage"], registry=registry)
        self._moved.labels(stage).set(time.time())
        try:
            self._server, self._thread = start_http_server(port, registry=registry)
        except OSError as error:
            raise UserError(f"cannot serve metrics: {error.strerror}", where=f"port {port}",
                            mend=f"name a free port in {VARIABLE}, or unset it") from None

    def bar_start(self, description: str, total: int, unit: str, done: int) -> None:
        self._work = description
        self._total.labels(self._stage, description).set(total)
        self.bar_advance(done, {})

    def bar_advance(self, done: int, fields: dict[str, float]) -> None:
        self._done.labels(self._stage, self._work).set(done)
        self._set(PROGRESS, fields)

    def step(self, curve: str, step: int, values: dict[str, float]) -> None:
        self._step.labels(self._stage, curve).set(step)
        self._set(curve, values)

    def close(self, status: str, metrics: dict[str, Any]) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _set(self, curve: str, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._value.labels(self._stage, curve, key).set(value)
        self._moved.labels(self._stage).set(time.time())
