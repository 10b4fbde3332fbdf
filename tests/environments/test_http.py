"""The contract over HTTP: our environments served and played, and real resource servers of NeMo Gym played by our client.

NeMo Gym needs Python 3.12 and an environment of its own: the interpreter that `STAGECRAFT_GYM_PYTHON` names, or else one that is made below
.work, once, where there are a Python 3.12 and the package.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import psutil
import pytest
import requests

from stagecraft.contract.errors import UserError, exit_on_user_error
from stagecraft.environments import server
from stagecraft.environments.api import InvalidCallError
from stagecraft.environments.episode import converse, script
from stagecraft.environments.library import ENVIRONMENTS
from stagecraft.environments.remote import RETRIES, SECONDS, RemoteEnvironment
from stagecraft.environments.written import write_call

GYM = "nemo-gym==0.4.0"
ENVIRONMENT = Path(__file__).parents[2] / ".work" / GYM
IS_3_12 = "import sys; raise SystemExit(sys.version_info[:2] != (3, 12))"


@pytest.fixture(scope="module")
def gym():
    """Starts a resource server of NeMo Gym, of a module and a class."""
    python = os.environ.get("STAGECRAFT_GYM_PYTHON") or environment_of_gym()
    return lambda module, prefix: up(python, str(Path(__file__).with_name("gym_server.py")), module, prefix)


def environment_of_gym():
    python, done = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "done"
    if not done.exists():
        found = [shutil.which("python3.12"), *sorted(map(str, Path.home().glob(".pyenv/versions/3.12*/bin/python3.12")))]
        fitting = [each for each in found if each and not subprocess.run([each, "-c", IS_3_12], capture_output=True).returncode]
        if not fitting:
            pytest.skip("there is no Python 3.12 in PATH or pyenv, and STAGECRAFT_GYM_PYTHON names none")
        subprocess.run([fitting[0], "-m", "venv", "--clear", ENVIRONMENT], check=True)
        made = subprocess.run([python, "-m", "pip", "install", "--quiet", GYM], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"pip cannot install {GYM}: {made.stderr.strip().splitlines()[-1]}")
        done.touch()
    return str(python)


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


def test_a_served_environment_judges_as_in_process(monkeypatch):
    monkeypatch.setattr("stagecraft.environments.remote.BACKOFF", 0.01)
    local = ENVIRONMENTS["warehouse"]
    with ours("warehouse") as url:
        remote = RemoteEnvironment(url)
        for seed in range(3):
            row = json.loads(json.dumps(local.draw(Random(seed))))
            for texts in [local.reference(row), *local.near_misses(row), [write_call("fly"), *local.reference(row)],
                          [write_call("look", room="moon"), *local.reference(row)]]:
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


def test_a_wrong_start_of_a_server_is_one_line(capsys):
    def ended(*arguments):
        with pytest.raises(SystemExit) as end:
            exit_on_user_error(lambda: server.main(arguments))
        said = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and "Traceback" not in said
        return said[-1]

    assert "the following arguments are required: NAME, PORT" in ended()
    assert "argument PORT: invalid int value: 'abc'" in ended("sql", "abc")
    assert ended("sql", "99999") == "error: PORT: 99999 is no port - give 1 to 65535"
    assert ended("nothing", "80").startswith("error: environments: unknown environment 'nothing' - use one of ")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert ended("warehouse", str(port)) == (f"error: 127.0.0.1, port {port}: cannot listen there: Address already in use - choose "
                                                 "another, or end what uses it")
        assert ended("warehouse", str(port), "--host", "192.0.2.1").startswith(f"error: 192.0.2.1, port {port}: cannot listen there: ")
        assert ended("warehouse", str(port), "--host", "no.invalid").startswith(f"error: no.invalid, port {port}: cannot listen there: ")


def test_without_a_sandbox_a_server_that_takes_one_does_not_start(monkeypatch):
    """Of the built-in ones those that run what a policy writes; they would answer, and never reward."""
    monkeypatch.setattr("stagecraft.environments.confinement.seccomp.available", lambda: False)
    with pytest.raises(UserError, match=r"^NAME: sql takes a sandbox, which there is not here: bubblewrap on x86-64 Linux is needed"):
        server.main(["sql", "8000"])
    assert {name for name, each in ENVIRONMENTS.items() if each.confined} == {"code", "sql", "software"}


@contextmanager
def small(answers, before=lambda: None):
    """A server that gives each path the answers in turn, the last one for ever: (status, text), with headers or without, or None for a
    connection that is closed. Gives its address and how often each path was asked."""
    asked = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            path = self.path.strip("/")
            self.rfile.read(int(self.headers["Content-Length"]))
            found = answers[path][min(asked[path], len(answers[path]) - 1)]
            asked[path] += 1
            before()
            if found is None:
                self.close_connection = True
                return
            self.send_response(found[0])
            for header, value in (found[2] if len(found) > 2 else {}).items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(found[1].encode() if isinstance(found[1], str) else found[1])

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()


def test_a_server_that_fails_for_a_moment_is_asked_again_and_a_tool_only_where_it_was_not_reached(monkeypatch):
    monkeypatch.setattr("stagecraft.environments.remote.BACKOFF", 0.01)
    row = {"responses_create_params": {"input": "?"}}
    with small({"seed_session": [(503, ""), None, (200, "{}")], "verify": [(500, ""), None, (200, '{"reward": 0.5, "x": 1}')],
                "count": [(503, ""), (200, "1")], "lost": [None], "broken": [(500, "it broke")], "late": [(422, "what?")]}) as (url, asked):
        episode = converse(RemoteEnvironment(url), row, script(["".join(map(write_call, ("count", "lost", "broken", "late"))), "done"]), 2)
        outputs = [item["output"] for item in episode.output if item["type"] == "function_call_output"]
        assert outputs == ["1", '{"error": "no answer: ConnectionError"}', "it broke", "what?"]
        assert episode.invalid_calls == 1 and (episode.reward.score, episode.reward.parts["x"]) == (0.5, 1)
        assert asked == {"seed_session": 3, "verify": 3, "count": 2, "lost": 1, "broken": 1, "late": 1}
    with small({"seed_session": [(503, "")]}) as (url, asked):
        with pytest.raises(UserError, match="HTTP 503"):
            RemoteEnvironment(url).seed(row)
        assert asked["seed_session"] == 1 + RETRIES


def test_a_server_that_asks_for_hours_is_asked_again_within_the_time_of_an_answer(monkeypatch):
    waited = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", waited.append)
    with small({"seed_session": [(503, "", {"Retry-After": "7200"}), (200, "{}")], "look": [(429, "", {"Retry-After": "7200"}), (200, "x")]
                }) as (url, asked):
        assert RemoteEnvironment(url).seed({}).call("look", {}) == "x" and asked == {"seed_session": 2, "look": 2}
    assert waited == [SECONDS, SECONDS]


@pytest.mark.parametrize(("kind", "sent", "read"), [
    ("text/plain", "grün, 日本".encode(), "grün, 日本"), ("text/plain; charset=latin-1", "grün".encode("latin-1"), "grün"),
    ("application/json", '"é"'.encode(), '"é"'), ("text/plain", b"\xff!", "\N{REPLACEMENT CHARACTER}!")])
def test_what_a_tool_answers_is_utf_8_unless_it_says_otherwise(kind, sent, read):
    with small({"seed_session": [(200, "{}")], "look": [(200, sent, {"Content-Type": kind})]}) as (url, _):
        assert RemoteEnvironment(url).seed({}).call("look", {}) == read


@pytest.mark.parametrize("verdict", ["<html>", "[1]", "{}", '{"reward": "good"}', '{"reward": NaN}', '{"reward": 1, "parts": 3}',
                                     '{"reward": 1' + "0" * 400 + "}", '{"reward": 1, "x": 1' + "0" * 400 + "}", "[" * 9000 + "]" * 9000])
def test_a_wrong_verdict_is_one_line(verdict):
    with small({"seed_session": [(200, "{}")], "verify": [(200, verdict)]}) as (url, _):
        with pytest.raises(UserError, match=rf"{url}/verify: no verdict with a reward: .* - correct the resource server"):
            converse(RemoteEnvironment(url), {"responses_create_params": {"input": "?"}}, script(["hm"]), 1)


def test_a_server_of_this_machine_is_asked_past_the_environments_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    with small({"seed_session": [(200, "{}")], "look": [(200, "seen")]}) as (url, _):
        assert RemoteEnvironment(url).seed({}).call("look", {}) == "seen"


def test_parts_may_be_null():
    with small({"seed_session": [(200, "{}")], "verify": [(200, '{"reward": 0.5, "parts": null}')]}) as (url, _):
        assert converse(RemoteEnvironment(url), {"responses_create_params": {"input": "?"}}, script(["hm"]), 1).reward.score == 0.5


def test_tools_whose_names_hold_hyphens_or_begin_like_verifying_are_tools_and_asked_once(monkeypatch):
    monkeypatch.setattr("stagecraft.environments.remote.BACKOFF", 0.01)
    with small({"seed_session": [(200, "{}")], "get-weather": [(200, "rain")], "verify_order": [(500, "it broke")],
                "seed_session-2": [None]}) as (url, asked):
        session = RemoteEnvironment(url).seed({})
        assert session.call("get-weather", {}) == "rain" and session.call("verify_order", {}) == "it broke"
        assert "no answer" in session.call("seed_session-2", {})
        assert asked == dict.fromkeys(("seed_session", "get-weather", "verify_order", "seed_session-2"), 1)
        for name in ("verify", "seed_session", "../verify", "a b", "a?", ""):
            with pytest.raises(InvalidCallError):
                session.call(name, {})


def test_conversations_share_their_connections_and_not_their_cookies():
    """A hundred of them, each with an answer of its own kept open, side by side."""
    with ours("warehouse") as url:
        remote, before = RemoteEnvironment(url), psutil.Process().num_fds()
        rows = [ENVIRONMENTS["warehouse"].draw(Random(seed)) for seed in range(100)]
        with ThreadPoolExecutor(50) as pool:
            sessions = list(pool.map(remote.seed, rows))
            here = [ENVIRONMENTS["warehouse"].seed(row).call("look", {"room": row["target"]}) for row in rows]
            assert list(pool.map(lambda session, row: session.call("look", {"room": row["target"]}), sessions, rows)) == here
        assert psutil.Process().num_fds() - before <= 64 + 10 and len(set(here)) > 10


@pytest.mark.slow
def test_a_real_gym_server_of_one_turn(gym):
    row = {"responses_create_params": {"input": [{"role": "user", "content": "Which is a colour? A: red B: seven. Answer in \\boxed{}."}]},
           "options": [{"A": "red"}, {"B": "seven"}], "expected_answer": "A", "grading_mode": "strict_single_letter_boxed", "uuid": "1"}
    with gym("mcqa", "MCQA") as url:
        remote = RemoteEnvironment(url)
        assert converse(remote, row, script(["<think>red is one</think>\\boxed{A}"]), 1).reward.score == 1
        for wrong in ("\\boxed{B}", "A", ""):
            assert converse(remote, row, script([wrong]), 1).reward.score == 0


@pytest.mark.slow
def test_a_real_gym_server_with_state_and_tools(gym):
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
