"""What a running stage tells Prometheus, read over HTTP as Prometheus does."""

import math
import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stagecraft.contract.errors import UserError
from stagecraft.contract.prometheus import PrometheusSink
from stagecraft.contract.runlog import RunLog
from stagecraft.contract.sinks import open_sinks
from stagecraft.contract.stages import STAGES


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def scrape(port: int) -> dict[tuple[str, ...], float]:
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    return {(sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples}


def test_curves_and_progress_are_there_while_the_stage_runs(tmp_path, port, monkeypatch):
    monkeypatch.setenv("STAGECRAFT_METRICS_PORT", str(port))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    log = RunLog("sft", tmp_path / "plots", tmp_path, open_sinks(STAGES["sft"], {}, {}))
    with log.bar("sft", 10, done=4) as bar:
        log.step(5, loss=2.0, lr=1e-3)
        bar.advance(tokens_per_second=7.0)
        seen = scrape(port)
        assert seen["stagecraft_value", "train", "loss", "sft"] == 2.0
        assert seen["stagecraft_value", "progress", "tokens_per_second", "sft"] == 7.0
        assert seen["stagecraft_step", "train", "sft"] == 5
        assert (seen["stagecraft_done", "sft", "sft"], seen["stagecraft_total", "sft", "sft"]) == (5, 10)
        log.step(6, loss=float("nan"), lr=1e-3)
        again = scrape(port)
        assert math.isnan(again["stagecraft_value", "train", "loss", "sft"])  # an alert must be able to see it
        moved = ("stagecraft_progress_timestamp_seconds", "sft")
        assert again[moved] > seen[moved]
    log.close("FINISHED", {})
    with pytest.raises(OSError):
        scrape(port)
    PrometheusSink(port, "sft").close("FINISHED", {})  # the port is free again


def test_a_taken_port_is_one_line(port):
    first = PrometheusSink(port, "sft")
    with pytest.raises(UserError, match="cannot serve metrics"):
        PrometheusSink(port, "sft")
    first.close("KILLED", {})


@pytest.mark.parametrize("text", ["http", "0", "65536", "-1"])
def test_what_is_no_port_is_one_line(text, monkeypatch):
    monkeypatch.setenv("STAGECRAFT_METRICS_PORT", text)
    with pytest.raises(UserError, match="is no port"):
        open_sinks(STAGES["sft"], {}, {})
