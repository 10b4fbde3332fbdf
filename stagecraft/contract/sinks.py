"""Chooses where a stage's story goes: the terminal or the event file, MLflow, Prometheus."""

from __future__ import annotations

import os
from typing import Any

from stagecraft.contract.events import EventSink, events_file
from stagecraft.contract.prometheus import PrometheusSink, metrics_port
from stagecraft.contract.runlog import Sink
from stagecraft.contract.stages import Stage
from stagecraft.contract.terminal import PlainSink, stage_head, terminal_sink
from stagecraft.contract.tracking import DEFAULT_URI, MlflowSink


def open_sinks(stage: Stage, params: dict[str, Any], inputs: dict[str, str]) -> list[Sink]:
    """The sinks for one run of `stage`.

    With an event file, whoever started the stage draws its progress; the plain lines then end up in the log.
    `$MLFLOW_TRACKING_URI` says where MLflow keeps its record (default: mlflow.db here); set to nothing, it turns it off.
    `$STAGECRAFT_METRICS_PORT` has Prometheus find curves and progress there (default: nowhere).
    """
    head = stage_head(stage.name)
    sinks: list[Sink] = [EventSink(stage.name), PlainSink(head)] if events_file() else [terminal_sink(head)]
    if port := metrics_port():
        sinks.append(PrometheusSink(port, stage.name))
    if uri := os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_URI):
        sinks.append(MlflowSink(uri, stage.name, params, inputs))
    return sinks
