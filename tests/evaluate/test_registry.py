"""The registry on a server, which knows no directory of its clients, and in directories of every name."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from stagecraft.contract import manifest, tracking
from stagecraft.contract.errors import UserError
from stagecraft.contract.registry import promote, registered
from stagecraft.contract.stages import PATHS
from stagecraft.contract.tracking import connect, experiment_id, reached
from tests.evaluate.test_champion import record, verdict
from tests.processes import answers


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of an MLflow server as a cluster has it: artifacts pass through it."""
    root = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with open(root / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{root}/mlflow.db", "--artifacts-destination",
             str(root / "artifacts"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            cwd=root, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while not answers(f"{address}/health"):
            assert process.poll() is None and time.monotonic() < deadline, (root / "log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _model(weights):
    """The artifact that is promoted, in the current directory; its verdict."""
    PATHS["nvfp4"].mkdir(parents=True, exist_ok=True)
    (PATHS["nvfp4"] / "weights").write_text(weights)
    digest = manifest.write(PATHS["nvfp4"], stage="quantize", params={}, inputs={}, code="", environment={}, metrics={})
    return {**verdict("e", record(90)), "digest": digest}


def _challenge(client):
    """One of another protocol, which may replace a champion that is gone only."""
    other = record(10, seed=3)
    other["rules"]["other_protocol"] = "replace_gone"
    promote(client, verdict("f", other))


def test_a_server_registers_a_model_of_a_directory_it_cannot_see(server, tmp_path, monkeypatch):
    client, clone = connect(server), tmp_path / "clone"
    clone.mkdir()
    monkeypatch.chdir(clone)
    assert promote(client, _model("1")) == "1"
    assert registered(client, "champion") == clone / PATHS["nvfp4"]
    assert promote(client, _model("1")) == "1"
    with pytest.raises(UserError, match=r"does not replace the champion .* another protocol"):
        _challenge(client)
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(clone)
    with pytest.raises(UserError, match=r"sort is .* points worse"):  # what the champion answered outlives the clone
        promote(client, verdict("f", record(10)))
    _challenge(client)
    assert client.get_model_version_by_alias("stagecraft", "champion").version == "2"


def test_a_server_keeps_the_artifacts_of_a_client_that_is_gone(server, tmp_path, monkeypatch):
    client, clone = connect(server), tmp_path / "clone"
    clone.mkdir()
    monkeypatch.chdir(clone)
    monkeypatch.setattr(tracking, "EXPERIMENT", "made-here")
    run = client.create_run(experiment_id(client)).info.run_id
    client.log_dict(run, {"loss": 1}, "figure.json")
    assert not list(clone.iterdir())
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(clone)
    with urllib.request.urlopen(f"{server}/get-artifact?path=figure.json&run_uuid={run}", timeout=30) as answer:
        assert b'"loss": 1' in answer.read()


def test_what_a_registry_refuses_is_one_line(server, monkeypatch):
    run = connect(server).create_run(experiment_id(connect(server))).info.run_id
    with pytest.raises(UserError, match=f"MLFLOW_TRACKING_URI={server}: MLflow failed: .*Invalid model version source.* - ask"):
        with reached(server, "ask") as client:
            client.create_model_version("stagecraft", source="file:///etc", run_id=run)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"MLflow failed: .*Connection refused") as refused, reached("http://me:secret@127.0.0.1:9",
                                                                                                  "ask") as client:
        promote(client, verdict("e", record(90)))
    assert "127.0.0.1:9" in str(refused.value) and "secret" not in str(refused.value)


def test_a_directory_may_have_any_name(tmp_path, monkeypatch):
    project = tmp_path / "größe & weight 100%41"
    project.mkdir()
    monkeypatch.chdir(project)
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    promote(client, _model("1"))
    assert registered(client, "champion") == project / PATHS["nvfp4"]
    with pytest.raises(UserError, match="does not replace the champion"):
        _challenge(client)
