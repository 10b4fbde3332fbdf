"""A pipeline's own run in MLflow, written by whoever conducts it here: what the stages that run log by themselves is nested under it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagecraft.cli.summary import read_metrics
from stagecraft.contract.errors import EXIT_INTERRUPTED
from stagecraft.contract.params import read_profile
from stagecraft.contract.stages import STAGES
from stagecraft.contract.tracking import (
    PARENT_VARIABLE,
    experiment_id,
    impatience,
    log_cached,
    log_metrics,
    log_params,
    reached,
    without_password,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

_STATUS = {0: "FINISHED", EXIT_INTERRUPTED: "KILLED"}  # of exit statuses; every other one is FAILED


class Diary:
    """What the pipeline tells of itself; without a client nothing is kept."""

    def __init__(self, client: MlflowClient | None):
        self._client = client
        self.status, self.stages = 1, list[str]()

    def cached(self, stage: str, params: Mapping[str, Any], inputs: Mapping[str, str], metrics: Mapping[str, Any]) -> None:
        """A stage had nothing to do. (Its task, a process of its own, would take seconds to import MLflow for this.) What goes wrong
        costs the record, never the run; what failed once may take minutes to fail again, so it is not asked again."""
        if self._client:
            try:
                with impatience():
                    log_cached(self._client, stage, params, inputs, metrics)
            except Exception as error:  # of whatever kind MLflow or its database raises
                self._client = None
                print(f"MLflow has no record of {stage}, nor of what is skipped after it: {without_password(error)}", file=sys.stderr,
                      flush=True)


@contextlib.contextmanager
def diary(name: str, stamp: str) -> Iterator[Diary]:
    """The parent run, where `MLFLOW_TRACKING_URI` is not empty. What the body puts in (`status`, `stages`) is written when it ends.

    Raises:
        UserError: MLflow cannot be reached, or refuses the run, before the body began. Later that costs the record, never the run.
    """
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if not uri:
        yield Diary(None)
        return
    params = {name: section for name, section in read_profile().items() if name in STAGES}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    tags = {"pipeline": name, "runner": "local", "git.commit": commit}
    with reached(uri, "start it, or do without: MLFLOW_TRACKING_URI= (empty)") as client:
        experiment = experiment_id(client)
        run = client.create_run(experiment, run_name=f"{name}-{stamp}", tags=tags).info.run_id
        log_params(client, run, params)
    told = Diary(client)
    os.environ.update({PARENT_VARIABLE: run, "MLFLOW_EXPERIMENT_ID": experiment})
    try:
        yield told
    finally:
        try:
            with impatience():
                _end(client, experiment, run, told)
        except Exception as error:  # of whatever kind MLflow or its database raises
            print(f"MLflow has no full record of this run: {without_password(error)}", file=sys.stderr, flush=True)


def _end(client: MlflowClient, experiment: str, run: str, told: Diary) -> None:
    """How the runs ended comes first, for it needs the database alone; figures and files may fail where it works."""
    client.set_terminated(run, _STATUS.get(told.status, "FAILED"))
    for child in client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run}' and attributes.status = 'RUNNING'"):
        client.set_terminated(child.info.run_id, "KILLED")
    for stage in told.stages:
        log_metrics(client, run, read_metrics(stage), prefix=f"{stage}.")
    if Path("dvc.lock").exists():
        client.log_artifact(run, "dvc.lock")
