"""MLflow's record of a run that was killed and begun again: the curves are whole, each point once."""

import pytest
from mlflow import MlflowClient

from stagecraft.contract.runlog import RunLog
from stagecraft.contract.tracking import MlflowSink, experiment_id


@pytest.mark.parametrize("given", [False, True])
def test_a_run_has_the_points_of_the_attempts_before(tmp_path, monkeypatch, given):
    """In a run of its own or, as where ranks of a job are started again, in the one that has them."""
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri, uri)
    if given:
        monkeypatch.setenv("MLFLOW_RUN_ID", client.create_run(experiment_id(client)).info.run_id)
    work = tmp_path / "work"
    work.mkdir()
    killed = RunLog("pretrain", tmp_path / "plots", work, [MlflowSink(uri, "pretrain", {}, {})])
    for step in range(1, 6):
        killed.step(step, loss=1 / step)
        killed.step(step, curve="speed", tokens=step)
    killed.close("KILLED", {})
    resumed = RunLog("pretrain", tmp_path / "plots", work, [MlflowSink(uri, "pretrain", {}, {})])
    resumed.rewind(3, "train")  # to its checkpoint
    for step in (4, 5, 6):
        resumed.step(step, loss=2 / step)
    resumed.close("FINISHED", {})
    runs = client.search_runs([experiment_id(client)], order_by=["attributes.start_time DESC"])
    assert len(runs) == (1 if given else 2)
    run = max(runs, key=lambda run: run.data.metrics["train/loss"] == 2 / 6).info.run_id
    history = [(point.step, point.value) for point in client.get_metric_history(run, "train/loss")]
    told = [(step, 1 / step) for step in (1, 2, 3)] + [(step, 2 / step) for step in (4, 5, 6)]
    assert sorted(history) == sorted([*told, *([(4, 1 / 4), (5, 1 / 5)] if given else [])])
    assert sorted(point.step for point in client.get_metric_history(run, "speed/tokens")) == [1, 2, 3, 4, 5]


def test_names_that_mlflow_refuses_are_made_ones_it_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    log = RunLog("evaluate", tmp_path / "plots", tmp_path, [MlflowSink(uri, "evaluate", {"a & b": {"c": 1}}, {})])
    log.step(1, curve="math (500)", loss=2)
    log.close("FINISHED", {"math500": {"Counting & Probability": {"exact_match": 0.5}}})
    client = MlflowClient(uri, uri)
    (run,) = client.search_runs([experiment_id(client)])
    assert run.info.status == "FINISHED" and run.data.params == {"a _ b.c": "1"}
    assert run.data.metrics["math500.Counting _ Probability.exact_match"] == 0.5 and run.data.metrics["math _500_/loss"] == 2
