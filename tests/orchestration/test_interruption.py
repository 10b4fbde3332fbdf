"""Ctrl-C ends a run cleanly: nothing keeps running, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stagecraft.cli import local


def test_an_interrupted_run_leaves_no_process_and_goes_on(fresh):
    process = fresh.kfp_until_it_hangs()
    before = (fresh.root / "params.yaml").read_text()
    second = fresh.kfp("rl.amount=44")
    assert second.returncode == 2 and second.stdout == "", second.stdout + second.stderr
    assert second.stderr.startswith(f"error: {fresh.root}: another kfp run is at work here (process {process.pid})")
    assert (fresh.root / "params.yaml").read_text() == before
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


def test_an_interrupted_stage_of_dvcs_is_one_line(fresh):
    fresh.edit("params.yaml", "fail: ''\npretrain", "fail: hang\npretrain")
    process = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "-s", "curate"], cwd=fresh.root, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True,
                               env={**os.environ, "MLFLOW_TRACKING_URI": "",
                                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"})
    deadline = time.monotonic() + 120
    while not (fresh.root / "executed.log").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "interrupted; the same command goes on from the last checkpoint" in err, out + err
    assert "Traceback" not in out + err


def test_a_second_interrupt_ends_what_does_not_heed_the_first(monkeypatch):
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    child.stdout.readline()
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [psutil.Process(child.pid)])
    former = signal.signal(signal.SIGALRM, local._interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        local._end_children()
    except KeyboardInterrupt:
        pytest.fail("what was started is left alone")
    finally:
        signal.signal(signal.SIGALRM, former)
    assert child.wait(timeout=10) == -signal.SIGKILL
