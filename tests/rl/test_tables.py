"""Rollouts are tables that one can browse in MLflow: the whole conversation, parts of the reward, a row each."""

import json

from mlflow import MlflowClient

from components.rl.rollouts import Sample
from stagecraft.contract.runlog import RunLog
from stagecraft.contract.tracking import MlflowSink, experiment_id


def test_rollouts_come_back_from_the_diary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    log = RunLog("rl", tmp_path / "plots", tmp_path, [MlflowSink(uri, "rl", {}, {})])
    said = [{"role": "user", "content": "guess"}, {"role": "assistant", "content": "16"}]
    rows = [Sample(f"guess-{number}", "guess", "guess", [1], 0, text="16<|im_end|>", messages=said, reward=number / 2,
                   parts={"correct": number / 2}).record(step=number) for number in range(3)]
    log.table("episodes", rows)
    log.table("rollouts", [])
    log.close("FINISHED", {})
    client = MlflowClient(uri, uri)
    (run,) = client.search_runs([experiment_id(client)])
    assert [file.path for file in client.list_artifacts(run.info.run_id) if "rollouts" in file.path] == []
    table = client.load_table(experiment_id(client), "episodes.json", [run.info.run_id])
    assert list(table["reward"]) == [0.0, 0.5, 1.0] and list(table["id"]) == ["guess-0", "guess-1", "guess-2"]
    assert json.loads(table["messages"][0]) == said and json.loads(table["parts"][2]) == {"correct": 1.0}
