"""Ctrl-C ends a run cleanly: nothing keeps running, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time

import psutil


def test_an_interrupted_run_leaves_no_process_and_goes_on(fresh):
    fresh.edit("params.yaml", "fail: ''\nsft", "fail: hang\nsft")
    environment = {**os.environ, "MLFLOW_TRACKING_URI": ""}
    process = subprocess.Popen([sys.executable, "-m", "stagecraft.cli.kfp", "run", "pipelines/full.py"], cwd=fresh.root, env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = fresh.root / "executed.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "pretrain" in log.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "interrupted in pretrain; finished stages stay finished (curate)" in out
    assert "Traceback" not in out + err
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
    fresh.executed()
    fresh.edit("params.yaml", "fail: hang", "fail: ''")
    assert fresh.kfp().returncode == 0
    assert "curate" not in fresh.executed()
