"""The diary: every stage's run in MLflow, written by a thread beside the stage so that training never waits for it.

The contract with whoever starts a stage is that of KFP's own MLflow plugin: `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_ID` and
`MLFLOW_RUN_ID` (a run made for this very stage) are used where they are set. Locally `kfp run` sets `STAGECRAFT_PARENT_RUN`
instead, and the stage makes its own run nested under that parent.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagecraft.contract.environment import describe_environment
from stagecraft.contract.errors import UserError
from stagecraft.contract.repository import locked_md5
from stagecraft.contract.runlog import Sink
from stagecraft.contract.stages import PATHS

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_URI = "sqlite:///mlflow.db"
EXPERIMENT = "stagecraft"
PARENT_VARIABLE = "STAGECRAFT_PARENT_RUN"
_FLUSH_SECONDS = 2.0
_BATCH = 900  # MLflow takes at most 1000 metrics in one call
_SYSTEM_SECONDS = 5
_DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}  # module -> package, where they differ


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among nested metrics, by dotted key (truth values are no metrics)."""
    return {key: float(value) for key, value in flatten(values) if isinstance(value, (int, float)) and not isinstance(value, bool)}


def served(uri: str) -> bool:
    """Whether a tracking address is that of a server, which keeps files at a place of its own and knows no path of this machine."""
    return uri.startswith(("http://", "https://"))


def connect(uri: str) -> MlflowClient:
    """A client whose database exists and whose chatter about migrations stays out of the terminal."""
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets its own levels
        logging.getLogger(name).setLevel(logging.WARNING)
    if named := re.fullmatch(r"sqlite:///([^?%:]+)", uri):
        _lay_out(Path(named[1]))
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _lay_out(database: Path) -> None:
    """Have the database there before MLflow opens it, whole: it makes its tables in some fifty steps, and who ends it between two of them
    leaves what it refuses from then on."""
    if database.exists():
        return
    from mlflow import MlflowClient

    database.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{database.name}-", dir=database.parent) as beside:
        made = Path(beside, database.name)
        MlflowClient(tracking_uri=f"sqlite:///{made}")
        if not database.exists():  # nobody else was quicker
            made.rename(database)


@contextlib.contextmanager
def reached(uri: str, mend: str, *, patient: bool = False) -> Iterator[MlflowClient]:
    """`connect`, for what cannot go on without MLflow.

    Args:
        uri: its database or server.
        mend: what to do where it fails.
        patient: nobody waits for it, so a server that starts again is waited for.

    Raises:
        UserError: MLflow refused what the body asked of it, cannot be reached, or lacks the driver of its database.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException  # of files that pass through a server
    from sqlalchemy.exc import SQLAlchemyError

    where = without_password(f"MLFLOW_TRACKING_URI={uri}")
    try:
        with contextlib.nullcontext() if patient else impatience():
            yield connect(uri)
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        raise UserError(without_password(f"MLflow failed: {error}"), where=where, mend=mend) from None
    except ModuleNotFoundError as error:
        raise UserError(f"MLflow lacks a package for this: {error}", where=where,
                        mend=f"pip install '{_DRIVERS.get(error.name, error.name)}'") from None


@contextlib.contextmanager
def impatience() -> Iterator[None]:
    """Have a server asked twice, where the environment does not say how often, and a database too: MLflow would try for minutes, and
    somebody waits.

    The environment is left alone: a stage that is started meanwhile would have it, and its record has the time.
    """
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as RETRIES
    from mlflow.store.db import utils

    usual, RETRIES.default = RETRIES.default, 1  # beside the first time
    tries, utils.MAX_RETRY_COUNT = utils.MAX_RETRY_COUNT, 2
    try:
        yield
    finally:
        RETRIES.default, utils.MAX_RETRY_COUNT = usual, tries


def without_password(said: object) -> str:
    """What was said in one line, and the addresses in it without whom they are asked as: a password may have slashes."""
    return " ".join(re.sub(r"://[^:/\s]*(:\S*)?@", "://", str(said)).split())


def experiment_id(client: MlflowClient) -> str:
    """The experiment of the environment, else `stagecraft`, made when it is missing; its files lie where the server has them, if there is
    one, else in mlartifacts/."""
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    found = client.get_experiment_by_name(EXPERIMENT)
    if found:
        return found.experiment_id
    here = None if served(client.tracking_uri) else Path("mlartifacts").absolute().as_uri()
    return client.create_experiment(EXPERIMENT, artifact_location=here)


def open_run(client: MlflowClient, stage: str, tags: dict[str, str] | None = None) -> str:
    """The run this stage logs to: the one made for it, or a new one (nested where there is a parent)."""
    tags = {"stage": stage, **(tags or {})}
    if given := os.environ.get("MLFLOW_RUN_ID"):
        for key, value in tags.items():
            client.set_tag(given, key, value)
        return given
    if parent := os.environ.get(PARENT_VARIABLE):
        tags["mlflow.parentRunId"] = parent
    return client.create_run(experiment_id(client), run_name=stage, tags=tags).info.run_id


def log_inputs(client: MlflowClient, run: str, inputs: Mapping[str, str]) -> None:
    """Input artifacts as datasets, each with the digest DVC knows it by (else its own)."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    datasets = []
    for name, digest in inputs.items():
        source = json.dumps({"path": PATHS[name].as_posix(), "manifest_digest": digest})
        known = (locked_md5(PATHS[name]) or digest)[:36]  # MLflow's limit, and the length of a DVC directory's digest
        datasets.append(DatasetInput(Dataset(name, known, "dvc", source), [InputTag("mlflow.data.context", "input")]))
    if datasets:
        client.log_inputs(run, datasets=datasets)


def _key(name: str) -> str:
    """A parameter's or metric's name as MLflow takes it; of others, as `Counting & Probability`, it refuses the whole batch."""
    return re.sub(r"[^\w.\- :/]", "_", name)


def log_params(client: MlflowClient, run: str, params: Mapping[str, Any]) -> None:
    """Parameters by dotted key, a hundred a call (MLflow's limit)."""
    from mlflow.entities import Param

    flat = [Param(_key(key), str(value)) for key, value in flatten(params)]
    for first in range(0, len(flat), 100):
        client.log_batch(run, params=flat[first : first + 100])


def log_metrics(client: MlflowClient, run: str, metrics: Mapping[str, Any], prefix: str = "") -> None:
    """A stage's closing metrics, all at step 0."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client.log_batch(run, metrics=[Metric(_key(prefix + key), value, now, 0) for key, value in numbers(metrics).items()])


def log_cached(client: MlflowClient, stage: str, params: Mapping[str, Any], inputs: Mapping[str, str], metrics: Mapping[str, Any]) -> None:
    """The run of a stage that DVC skipped: same parameters, inputs and figures, tagged `cached`."""
    run = open_run(client, stage, {"cached": "true"})
    log_params(client, run, params)
    log_inputs(client, run, inputs)
    log_metrics(client, run, metrics)
    if not os.environ.get("MLFLOW_RUN_ID"):
        client.set_terminated(run)


class MlflowSink(Sink):
    """Hands everything to a thread of its own, which writes in batches.

    What goes wrong there (a locked database, a server that is away) costs the record, never the run: it is said once, at the end.
    """

    def __init__(self, uri: str, stage: str, params: dict[str, Any], inputs: dict[str, str]):
        self._uri, self._stage, self._params, self._inputs = uri, stage, params, inputs
        self._facts: dict[str, Any] = {}
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def step(self, curve: str, step: int, values: dict[str, float]) -> None:
        self._queue.put(("metrics", _points(curve, {"step": step, **values})))

    def earlier(self, curve: str, rows: list[dict[str, float]]) -> None:
        self._queue.put(("earlier", curve, [point for row in rows for point in _points(curve, row)]))

    def record(self, facts: dict[str, Any]) -> None:
        self._facts.update(facts)

    def figure(self, path: Path) -> None:
        self._queue.put(("figure", path))

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        self._queue.put(("table", name, rows))

    def close(self, status: str, metrics: dict[str, Any]) -> None:
        self._queue.put(("close", status, metrics))
        self._thread.join(timeout=120)
        if self._thread.is_alive():
            self._error = TimeoutError(f"{self._uri} did not answer within 120 s")
        if self._error:
            print(f"MLflow has no full record of this run: {without_password(self._error)}", file=sys.stderr, flush=True)

    def _work(self) -> None:
        try:
            self._write()
        except Exception as error:  # the thread's boundary: `close` reports it
            self._error = error

    def _write(self) -> None:
        from mlflow.entities import Metric
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        client = connect(self._uri)
        run = open_run(client, self._stage)
        log_params(client, run, self._params)
        log_inputs(client, run, self._inputs)
        monitor = SystemMetricsMonitor(run, sampling_interval=_SYSTEM_SECONDS, tracking_uri=self._uri)
        monitor.start()
        waiting: list[Metric] = []
        flushed = time.monotonic()
        while True:
            try:
                item = self._queue.get(timeout=_FLUSH_SECONDS)
            except queue.Empty:
                item = ("tick",)
            if item[0] == "metrics":
                waiting += [Metric(*point) for point in item[1]]
            elif item[0] == "earlier":
                # A run that was given may have them of the attempt itself, as where the ranks of a job are started again.
                there = {key.partition("/")[0] for key in client.get_run(run).data.metrics}
                waiting += [Metric(*point) for point in item[2] if item[1] not in there]
            elif item[0] == "figure":
                client.log_artifact(run, str(item[1]), "plots")
            elif item[0] == "table" and item[2]:
                client.log_table(run, {key: [_cell(row[key]) for row in item[2]] for key in item[2][0]}, f"{item[1]}.json")
            if waiting and (item[0] == "close" or len(waiting) > _BATCH // 2 or time.monotonic() - flushed > _FLUSH_SECONDS):
                for first in range(0, len(waiting), _BATCH):
                    client.log_batch(run, metrics=waiting[first : first + _BATCH])
                waiting, flushed = [], time.monotonic()
            if item[0] == "close":
                monitor.finish()
                self._finish(client, run, *item[1:])
                return

    def _finish(self, client: MlflowClient, run: str, status: str, metrics: dict[str, Any]) -> None:
        environment = {**describe_environment(), **self._facts}
        client.log_dict(run, environment, "environment.json")
        for key, value in self._facts.items():
            client.set_tag(run, key, str(value)[:500])
        log_metrics(client, run, metrics)
        if not os.environ.get("MLFLOW_RUN_ID"):
            client.set_terminated(run, status)


def _points(curve: str, row: Mapping[str, float]) -> list[tuple[str, float, int, int]]:
    """MLflow's metrics of a point of a curve: key, value, time in milliseconds, step."""
    now = int(time.time() * 1000)
    return [(_key(f"{curve}/{key}"), float(value), now, int(row["step"])) for key, value in row.items() if key != "step"]


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (dict, list)) else value
