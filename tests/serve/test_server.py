"""The server as a process: what it refuses to start on, what it says when it dies, and that nothing of it is left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import requests

from stagecraft.contract.errors import UserError
from stagecraft.inference.server import Server, ServerDiedError
from tests.checkpoints import tiny_checkpoint
from tests.serve.conftest import params


def settings(**changes):
    return replace(params().server, draft_tokens=0, **changes)


def _group_is_gone(group: int, seconds: float = 10) -> bool:
    for _ in range(int(10 * seconds)):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_busy_port(project, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}: cannot listen there: Address already in use - choose another with --port"):
            Server(project / "aligned", settings(), tmp_path / "log", port=port)


def test_no_port_number(project, tmp_path):
    with pytest.raises(UserError, match=r"port 70000: .*not a port number"):
        Server(project / "aligned", settings(), tmp_path / "log", port=70000)


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        Server(tmp_path / "nowhere", settings(), tmp_path / "log")
    with pytest.raises(UserError, match=r"not a checkpoint: no config\.json"):
        Server(tmp_path, settings(), tmp_path / "log")


def test_unreadable_checkpoint(tmp_path):
    model = tiny_checkpoint(tmp_path / "model")
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match=r"model.safetensors: unreadable checkpoint"):
        Server(model, settings(), tmp_path / "log")
    weights.write_bytes(whole)
    (model / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: unreadable checkpoint"):
        Server(model, settings(), tmp_path / "log")


def test_a_server_that_dies_says_why(project, tmp_path):
    server = Server(project / "aligned", settings(max_model_len=10**6), tmp_path / "log")  # the model has 2048 positions
    with pytest.raises(ServerDiedError, match=r"(?s)ended with status 1 before it was healthy.*1000000"):
        server.__enter__()
    assert not server.alive()


def test_a_server_that_is_late_is_stopped(project, tmp_path):
    server = Server(project / "aligned", settings(startup_seconds=0.5), tmp_path / "log")
    with pytest.raises(ServerDiedError, match=r"not healthy after 0\.5 seconds"):
        server.__enter__()
    assert not server.alive()


def test_the_group_ends_with_the_process_that_started_it():
    start = ("import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-m', 'stagecraft.inference.tether', 'http.server', "
             "'0', '--bind', '127.0.0.1'], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, "
             "start_new_session=True); print(child.pid, flush=True); time.sleep(60)")
    parent = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    time.sleep(0.5)
    os.killpg(child, 0)  # it runs
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert _group_is_gone(child)


@pytest.mark.slow
def test_a_model_that_processes_divide_answers_the_same(tmp_path):
    model = tiny_checkpoint(tmp_path / "model")

    def answer(tensor):
        with Server(model, settings(tensor=tensor, max_model_len=128, max_num_seqs=4), tmp_path / f"{tensor}.log") as server:
            asked = {"model": params().server.name, "prompt": [5, 6, 7, 8], "max_tokens": 12, "temperature": 0}
            return requests.post(f"{server.url}/v1/completions", json=asked, timeout=100).json()["choices"][0]["text"]

    assert answer(1) == answer(2)
