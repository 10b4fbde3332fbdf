"""The contract over HTTP: our environments served and played, and real resource servers of NeMo Gym played by our client.

NeMo Gym needs Python 3.12 and an environment of its own: `STAGECRAFT_GYM_PYTHON` names its interpreter (a venv with nemo-gym 0.4.0).
"""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
import requests

from stagecraft.contract.errors import UserError
from stagecraft.environments.episode import converse, script
from stagecraft.environments.items import write_call
from stagecraft.environments.library import ENVIRONMENTS
from stagecraft.environments.remote import RemoteEnvironment

GYM = os.environ.get("STAGECRAFT_GYM_PYTHON", "")
needs_gym = pytest.mark.skipif(not GYM, reason="STAGECRAFT_GYM_PYTHON names no Python 3.12 with nemo-gym")


@contextmanager
def up(*command):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, str(port)], stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                requests.get(url, timeout=1)
                break
            except requests.ConnectionError:
                assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()[-2000:]
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.communicate()


def ours(name):
    return up(sys.executable, "-m", "stagecraft.environments.server", name)


def test_a_served_environment_judges_as_in_process():
    local = ENVIRONMENTS["warehouse"]
    with ours("warehouse") as url:
        remote = RemoteEnvironment(url)
        for seed in range(3):
            row = json.loads(json.dumps(local.draw(Random(seed))))
            for texts in [local.reference(row), *local.near_misses(row), [write_call("fly"), *local.reference(row)]]:
                here, there = (converse(each, row, script(texts), 8) for each in (local, remote))
                assert here.reward == there.reward and here.output == there.output and here.invalid_calls == there.invalid_calls
        first, second = (remote.seed(row) for _ in range(2))  # sessions do not share a world
        first.call("carry", {"item": row["item"], "count": 1, "origin": row["origins"][0], "target": row["target"]})
        assert first.call("look", {"room": row["target"]}) != second.call("look", {"room": row["target"]})
        with pytest.raises(UserError, match="HTTP 422"):
            remote.seed({"responses_create_params": {"input": []}})
        assert requests.post(f"{url}/look", json={"room": "hall"}, timeout=5).status_code == 409
        assert requests.post(f"{url}/verify", json={"response": {"output": []}}, timeout=5).status_code == 409
    with pytest.raises(UserError, match=r"no answer.*start the resource server"):
        remote.seed(row)


def gym(module, prefix):
    return up(GYM, str(Path(__file__).with_name("gym_server.py")), module, prefix)


@needs_gym
def test_a_real_gym_server_of_one_turn():
    row = {"responses_create_params": {"input": [{"role": "user", "content": "Which is a colour? A: red B: seven. Answer in \\boxed{}."}]},
           "options": [{"A": "red"}, {"B": "seven"}], "expected_answer": "A", "grading_mode": "strict_single_letter_boxed", "uuid": "1"}
    with gym("mcqa", "MCQA") as url:
        remote = RemoteEnvironment(url)
        assert converse(remote, row, script(["<think>red is one</think>\\boxed{A}"]), 1).reward.score == 1
        for wrong in ("\\boxed{B}", "A", ""):
            assert converse(remote, row, script([wrong]), 1).reward.score == 0


@needs_gym
def test_a_real_gym_server_with_state_and_tools():
    row = {"responses_create_params": {"input": [{"role": "user", "content": "Add 1, then 2, then get the count."}]},
           "expected_count": 6, "initial_count": 3}
    with gym("example_session_state_mgmt", "StatefulCounter") as url:
        remote = RemoteEnvironment(url)
        calls = [write_call("increment_counter", count=1), write_call("increment_counter", count=2), write_call("get_counter_value")]
        episode = converse(remote, row, script([*calls, "6"]), 5)
        assert episode.reward.score == 1 and '{"count":6}' in [item.get("output") for item in episode.output]
        assert converse(remote, row, script([*calls[:1], "6"]), 5).reward.score == 0
        wrong = converse(remote, row, script([write_call("increment_counter", number=1), write_call("fly"), *calls, "6"]), 6)
        assert wrong.invalid_calls == 2 and wrong.reward.score == 1
