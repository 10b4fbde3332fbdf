"""MLflow keeps the diary: a parent per pipeline run, a nested run per stage, skipped stages tagged, the champion registered once."""

import os
import re
import subprocess
import sys

import pytest
from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES

from stagecraft.cli.diary import Diary, diary
from stagecraft.cli.local import _set_environment
from stagecraft.contract.errors import UserError
from stagecraft.contract.stages import STAGES
from stagecraft.contract.tracking import (
    DEFAULT_URI,
    PARENT_VARIABLE,
    MlflowSink,
    connect,
    experiment_id,
    impatience,
    reached,
    without_password,
)
from tests.orchestration.conftest import copy
from tests.orchestration.project import REPOSITORY
from tests.orchestration.test_cluster import run_pod

NOWHERE = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


@pytest.fixture(scope="module")
def told(finished_project, tmp_path_factory):
    """A project that ran twice with MLflow: once after a number changed under `sft`, once unchanged."""
    project = copy(finished_project, tmp_path_factory.mktemp("told") / "project")
    uri = f"sqlite:///{project.root}/mlflow.db"
    for argument in ("sft.amount=30", "sft.amount=30"):
        done = project.kfp(argument, MLFLOW_TRACKING_URI=uri)
        assert done.returncode == 0, done.stdout + done.stderr
    return project, MlflowClient(uri, uri)


def runs(client, experiment="stagecraft"):
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    found = client.search_runs([experiment_id], order_by=["attributes.start_time ASC"])
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    return [(parent, {run.data.tags["stage"]: run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id})
            for parent in parents]


def test_every_stage_has_its_nested_run_and_skipped_ones_say_so(told):
    _, client = told
    (_, first), (_, second) = runs(client)
    assert set(first) == set(second) == set(STAGES)
    assert {name for name, run in first.items() if run.data.tags.get("cached")} == {"curate", "pretrain"}
    assert {name for name, run in second.items() if run.data.tags.get("cached")} == set(STAGES)
    assert all(run.info.status == "FINISHED" for run in (*first.values(), *second.values()))


def test_a_nested_run_holds_parameters_curves_environment_and_inputs_with_dvc_digests(told):
    project, client = told
    _, stages = runs(client)[0]
    run = stages["sft"]
    assert run.data.params["amount"] == "30"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == list(range(1, 11))
    assert run.data.metrics["families.sort.exact_match"] == 0.5
    assert "environment.json" in [file.path for file in client.list_artifacts(run.info.run_id)]
    digests = {item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs}
    lock = (project.root / "dvc.lock").read_text()
    assert set(digests) == {"corpus", "base"}
    assert all(digest.endswith(".dir") and digest in lock for digest in digests.values())


def test_two_pipeline_runs_can_be_compared(told):
    project, client = told
    (first, _), (second, _) = runs(client)
    assert first.data.params["sft.amount"] == "30"
    assert first.data.metrics["sft.loss_last"] == second.data.metrics["sft.loss_last"] == project.metrics("sft")["loss_last"]


def test_promotion_happens_once(told):
    _, client = told
    versions = client.search_model_versions("name = 'stagecraft'")
    assert len(versions) == 1  # two runs, one model
    champion = client.get_model_version_by_alias("stagecraft", "champion")
    assert champion.version == versions[0].version
    assert champion.tags["artifact"] == "nvfp4"
    assert champion.tags["protocol_digest"] == "p" * 64
    assert champion.tags["dvc_md5"].endswith(".dir")


def test_a_stage_on_its_own_is_a_run_of_its_own(told, tmp_path):
    project, client = told
    alone = copy(project, tmp_path / "alone")
    alone.edit("params.yaml", "amount: 7 ", "amount: 70 ")
    done = alone.dvc("repro", "-s", "serve", MLFLOW_TRACKING_URI=client.tracking_uri)
    assert done.returncode == 0, done.stderr
    parents = runs(client)
    assert [parent.data.tags.get("stage") for parent, _ in parents] == [None, None, "serve"]


def test_a_model_that_falls_behind_the_champion_ends_the_pipeline_and_leaves_it_alone(told):
    project, client = told
    before = client.get_model_version_by_alias("stagecraft", "champion")
    project.executed()
    done = project.kfp("quantize.amount=50", "evaluate.fail=worse", MLFLOW_TRACKING_URI=client.tracking_uri)
    assert done.returncode == 2
    assert "nvfp4 does not replace the champion (version 1): sort is 40.0 ± 7.0 points worse" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert project.executed() == ["quantize", "evaluate"]
    after = client.get_model_version_by_alias("stagecraft", "champion")
    assert (after.version, after.tags["digest"]) == (before.version, before.tags["digest"])


@pytest.mark.parametrize("runner", ["local", "pod"])
def test_a_task_that_cannot_reach_the_registry_ends_with_one_line(finished, tmp_path, runner):
    (tmp_path / "store").mkdir()
    for name in STAGES["evaluate"].inputs:
        (tmp_path / "store" / f"{name}.metadata.json").write_text('{"dvc_lock": "{}"}')
    done = run_pod(finished, "evaluate", tmp_path, STAGECRAFT_RUNNER=runner, **NOWHERE)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: MLFLOW_TRACKING_URI=http://127.0.0.1:9: MLflow failed: ") and "start the run again" in line
    assert "Traceback" not in done.stderr


def test_a_pipeline_that_cannot_reach_mlflow_ends_before_it_begins(fresh):
    done = fresh.kfp(MLFLOW_TRACKING_URI=NOWHERE["MLFLOW_TRACKING_URI"])
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: MLFLOW_TRACKING_URI=http://127.0.0.1:9: MLflow failed: ") and "do without: MLFLOW_TRACKING_URI= " in line
    assert fresh.executed() == []


@pytest.mark.parametrize("fails", ["log_artifact", "search_runs"])
def test_a_diary_that_fails_at_the_end_costs_the_record_not_the_run(finished, monkeypatch, capsys, fails):
    def fail(*_):
        raise OSError("no space left\non the server")

    monkeypatch.chdir(finished.root)
    uri = f"sqlite:///{finished.root}/mlflow.db"
    with monkeypatch.context() as patch:
        for name, value in (("MLFLOW_TRACKING_URI", uri), ("MLFLOW_EXPERIMENT_ID", ""), (PARENT_VARIABLE, "")):
            patch.setenv(name, value)
        patch.setattr(MlflowClient, fails, fail)
        with diary("full", "now") as told:
            told.status, told.stages = 0, ["curate"]
    assert capsys.readouterr().err == "MLflow has no full record of this run: no space left on the server\n"
    ((parent, _),) = runs(MlflowClient(uri, uri))
    assert parent.info.status == "FINISHED"


@pytest.mark.parametrize(("said", "expected"), [
    ("no postgresql://me:pa/ss@h:5432/db\nhere", "no postgresql://h:5432/db here"),
    ("http://me:p@ss@h/x, http://me@h/x", "http://h/x, http://h/x"),
    ("sqlite:////home/me@work/mlflow.db is locked", "sqlite:////home/me@work/mlflow.db is locked"),
    ("http://h:5000/x asked of models:/stagecraft@champion", "http://h:5000/x asked of models:/stagecraft@champion"),
])
def test_an_address_is_told_without_its_password(said, expected):
    assert without_password(said) == expected


def test_no_line_about_a_lost_record_has_a_password(monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise OSError(f"{address} is full")

    address = "http://me:s3/cret@127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    MlflowSink(address.replace("/cret", "cret"), "evaluate", {}, {}).close("FINISHED", {})
    monkeypatch.chdir(REPOSITORY)
    for name, value in (("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db"), ("MLFLOW_EXPERIMENT_ID", ""), (PARENT_VARIABLE, "")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(MlflowClient, "set_terminated", fail)
    with diary("full", "now") as told:
        told.cached("sft", {}, {}, {})
    sink, *lines = capsys.readouterr().err.splitlines()
    assert "http://127.0.0.1:9/api" in sink and "s3" not in sink
    assert lines == ["MLflow has no record of sft, nor of what is skipped after it: http://127.0.0.1:9 is full",
                     "MLflow has no full record of this run: http://127.0.0.1:9 is full"]


def test_nobody_waits_for_a_server_that_is_gone_but_who_has_the_time(monkeypatch, capsys):
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    told = Diary(connect(NOWHERE["MLFLOW_TRACKING_URI"]))
    for stage in ("sft", "rl"):
        told.cached(stage, {}, {}, {})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("MLflow has no record of sft, nor of what is skipped after it: ")
    for patient in (False, True):
        assert sum(waited) < 5
        with pytest.raises(UserError, match="MLflow failed"), reached(NOWHERE["MLFLOW_TRACKING_URI"], "", patient=patient) as client:
            experiment_id(client)
    assert sum(waited) > 200


def test_nobody_waits_for_a_database_that_cannot_be_opened(monkeypatch, tmp_path):
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(UserError, match="unable to open database file"), reached(f"sqlite:///{tmp_path}/mlflow.db", ""):
        pass
    assert sum(waited) < 5


def test_impatience_is_not_inherited_by_what_is_started_meanwhile(monkeypatch):
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with impatience():
        assert MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() == 1 and "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    assert MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() == 7
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    with impatience():
        assert MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() == 3


@pytest.mark.parametrize(("scheme", "package"), [("postgresql+psycopg2", "psycopg2-binary"), ("mysql", "mysqlclient"),
                                                 ("mysql+pymysql", "pymysql")])
def test_a_database_without_its_driver_is_one_line(monkeypatch, scheme, package):
    for driver in ("psycopg2", "MySQLdb", "pymysql"):
        monkeypatch.setitem(sys.modules, driver, None)  # as if it were not installed
    with pytest.raises(UserError, match=f"^MLFLOW_TRACKING_URI={re.escape(scheme)}://h/d: .* - pip install '{package}'$"):
        with reached(f"{scheme}://a:b@h/d", "start it") as client:
            experiment_id(client)


def test_a_kill_while_the_database_is_made_leaves_none_that_mlflow_refuses(tmp_path):
    connects = "from stagecraft.contract.tracking import *; print(experiment_id(connect(DEFAULT_URI)))"
    killed = ("import os; from sqlalchemy import Engine, event\n"
              "event.listen(Engine, 'after_cursor_execute', lambda *said: 'CREATE TABLE spans' in said[2] and os._exit(9))\n")
    root = tmp_path / "feature%2Fx"  # which in an address would be another directory
    root.mkdir()
    statuses = [subprocess.run([sys.executable, "-c", code], cwd=root).returncode for code in (killed + connects, connects)]
    assert statuses == [9, 0] and (root / "mlflow.db").is_file()


def test_the_address_of_a_projects_record_does_not_depend_on_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    _set_environment(tmp_path / "feature%2Fx", tmp_path / "events.jsonl", None)
    assert os.environ["MLFLOW_TRACKING_URI"] == DEFAULT_URI
