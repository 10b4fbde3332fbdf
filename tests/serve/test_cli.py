"""`stagecraft serve` and `stagecraft chat`, as they are typed; the serving ends with its engine killed and, at last, drained."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from openai import APIError, OpenAI
from ruamel.yaml import YAML

from stagecraft.cli import chat
from stagecraft.contract import manifest
from stagecraft.contract.errors import UserError
from tests.processes import named
from tests.serve.conftest import PROFILE, promote

COMMAND = [sys.executable, "-m", "stagecraft.cli.main"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(*arguments, cwd, stdin=""):
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def workplace(project, tmp_path_factory):
    """A project directory whose evaluation promoted the tiny model."""
    root = tmp_path_factory.mktemp("workplace")
    profile = YAML(typ="safe").load(PROFILE.read_text())
    profile["serve"]["server"].update(draft_tokens=0, startup_seconds=900.0)
    with (root / "params.yaml").open("w") as stream:
        YAML(typ="safe").dump(profile, stream)
    shutil.copytree(project / "aligned", root / "artifacts" / "aligned")
    promote(root / "artifacts", "aligned", manifest.read(root / "artifacts" / "aligned")["digest"])
    return root


@pytest.fixture(scope="module")
def serving(workplace):
    """`stagecraft serve` on a free port; nothing of it may be left at the end."""
    port = _free_port()
    process = subprocess.Popen([*COMMAND, "serve", "--port", str(port)], cwd=workplace, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    lines = [process.stdout.readline() for _ in range(5)]
    assert "aligned, promoted by artifacts/evaluation/promotion.json: digest " in lines[0], lines
    assert "vllm.entrypoints.openai.api_server --model artifacts/aligned" in lines[1], lines
    assert f"on http://127.0.0.1:{port}/v1" in lines[3], lines
    yield process, f"http://127.0.0.1:{port}"
    process.kill()
    process.communicate()
    time.sleep(0.5)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(scope="module")
def url(serving):
    return serving[1]


def test_chat_answers_a_prompt(workplace, url):
    one, two = (_run("chat", "--url", url, "--max-tokens", "12", "Sort: 3 1 2", cwd=workplace) for _ in range(2))
    assert one.returncode == 0, one.stderr
    assert one.stdout.strip() and one.stdout == two.stdout


def test_chat_converses_until_the_input_ends(workplace, url):
    spoken = _run("chat", "--url", f"{url}/v1", "--max-tokens", "4", cwd=workplace, stdin="Sort: 3 1\n/new\nSort: 2 1\n")
    assert spoken.returncode == 0, spoken.stderr
    assert spoken.stdout.count("> ") >= 3


def test_chat_says_what_the_server_refuses(workplace, url):
    refused = _run("chat", "--url", url, "x " * 2000, cwd=workplace)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {url}: the server refuses:") and refused.stderr.count("\n") == 1


def test_chat_asks_this_machine_past_a_proxy(workplace, url, proxy):
    spoken = _run("chat", "--url", url, "--max-tokens", "4", "Sort: 3 1 2", cwd=workplace)
    assert spoken.returncode == 0, spoken.stderr


def test_metrics_are_served(url):
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as response:
        assert b"vllm:" in response.read()


def test_a_server_has_a_log_of_its_own(workplace, url):
    assert f"127.0.0.1:{url.rpartition(':')[2]}" in (workplace / ".work" / f"server-{url.rpartition(':')[2]}.log").read_text()


def test_serve_on_a_busy_port(workplace, url):
    refused = _run("serve", "--port", url.rpartition(":")[2], cwd=workplace)
    assert refused.returncode == 2
    assert "cannot listen there: Address already in use" in refused.stderr and refused.stderr.count("\n") == 1


def test_chat_without_a_server(tmp_path):
    refused = _run("chat", "--url", f"http://127.0.0.1:{_free_port()}", "hello", cwd=tmp_path)
    assert refused.returncode == 2
    assert "no server answers - start one with `stagecraft serve`" in refused.stderr and refused.stderr.count("\n") == 1


@pytest.mark.parametrize("wrong", ["localhost:8000", "http://", "http://localhost:80a0", "http://[::1", "http://a\x01b"])
def test_chat_at_what_is_no_address(wrong):
    with pytest.raises(UserError, match=rf"{re.escape(wrong)}: no address of a server: .* - give http://HOST:PORT"):
        chat.main(["hello", "--url", wrong])


@pytest.mark.parametrize(("arguments", "said"), [
    (["artifacts/nothing"], "artifacts/nothing: no such directory"),
    (["artifacts"], "artifacts: not a checkpoint: no config.json"),
    (["artifacts/aligned", "--draft-tokens", "99"], "--draft-tokens: cannot draft 99 tokens"),
])
def test_serve_refuses(workplace, arguments, said):
    refused = _run("serve", *arguments, cwd=workplace)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {said}") and refused.stderr.count("\n") == 1


def test_serve_without_a_promoted_model(tmp_path):
    shutil.copy(PROFILE, tmp_path / "params.yaml")
    missing = _run("serve", cwd=tmp_path)
    assert missing.returncode == 2 and "run dvc repro evaluate" in missing.stderr
    promote(tmp_path / "artifacts", None, reason="too weak")
    nothing = _run("serve", cwd=tmp_path)
    assert nothing.returncode == 2
    assert "there is no model to serve: too weak - name a checkpoint to serve" in nothing.stderr


def test_serve_a_model_that_was_changed(workplace, tmp_path):
    changed = shutil.copytree(workplace / "artifacts" / "aligned", tmp_path / "changed")
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    refused = _run("serve", str(changed), cwd=workplace)
    assert refused.returncode == 2
    assert "model.safetensors: corrupt file" in refused.stderr and refused.stderr.count("\n") == 1


def test_serve_a_model_too_big_for_the_memory(workplace, tmp_path):
    vast = shutil.copytree(workplace / "artifacts" / "aligned", tmp_path / "vast")
    (vast / "manifest.json").unlink()
    header = json.dumps({"w": {"dtype": "BF16", "shape": [10**6, 10**6], "data_offsets": [0, 2 * 10**12]}}).encode()
    with open(vast / "model.safetensors", "wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + 2 * 10**12)  # a hole, no bytes on the disk
    refused = _run("serve", str(vast), cwd=workplace)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert re.search(r"vast: needs 400\d\.\d GB of memory \(weights in float32 4000\.0, .*\), \d+\.\d GB are free - ", refused.stderr)


def _answer_at_length(url, tokens):
    """A streamed answer of that many tokens: (those that came, the error that ended it or None)."""
    came = 0
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    try:
        for chunk in client.chat.completions.create(model="stagecraft", messages=[{"role": "user", "content": "go on"}], max_tokens=tokens,
                                                    stream=True, extra_body={"ignore_eos": True, "return_token_ids": True}):
            came += sum(len(getattr(choice, "token_ids", None) or ()) for choice in chunk.choices)
    except APIError as error:
        return came, error
    return came, None


def _under_way(url):
    """Start a long answer; returns once its first tokens have been computed."""
    pool = ThreadPoolExecutor(1)
    before = _generated(url)
    answer = pool.submit(_answer_at_length, url, 340)
    while _generated(url) < before + 5:
        time.sleep(0.01)
    return answer


def _generated(url):
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        return sum(float(line.split()[-1]) for line in response.read().decode().splitlines()
                   if line.startswith("vllm:generation_tokens_total"))


def _family(process):
    """(API process, engine) under `stagecraft serve`."""
    return tuple(named(process.pid, name)[0] for name in ("api_server", "EngineCore"))


def _layout(process):
    """Where the program lies in its memory: a new place for every program that is started, that of its parent for a fork."""
    return Path(f"/proc/{process.pid}/maps").read_text().partition("-")[0]


def test_the_engine_is_a_fork_of_the_server(serving):
    """Its title tells nothing: vLLM writes it over the command line."""
    api, engine = _family(serving[0])
    assert _layout(engine) == _layout(api) != _layout(psutil.Process())


def test_an_engine_that_is_killed_is_told_of_and_started_again(serving, workplace):
    process, url = serving
    answer = _under_way(url)
    _family(process)[1].kill()
    came, error = answer.result(120)
    assert came < 340 and "EngineCore encountered an issue" in str(error)
    assert "; starting it again" in process.stderr.readline()
    assert f"on {url}/v1" in process.stdout.readline()
    process.stdout.readline()
    assert _answer_at_length(url, 20) == (20, None)


@pytest.mark.slow
def test_a_server_that_is_killed_leaves_no_engine_and_is_started_again(serving):
    process, url = serving
    api, engine = _family(process)
    api.kill()
    assert "; starting it again" in process.stderr.readline()
    deadline = time.monotonic() + 20  # it was killed before the line was printed, and its memory takes a moment to be given back
    with contextlib.suppress(psutil.NoSuchProcess):  # or it is one that nobody has reaped yet
        while engine.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, engine.status()
            time.sleep(0.05)
    assert f"on {url}/v1" in process.stdout.readline()
    process.stdout.readline()
    assert _answer_at_length(url, 20) == (20, None)


def test_sigterm_lets_an_answer_finish(serving):
    process, url = serving
    answer = _under_way(url)
    process.send_signal(signal.SIGTERM)
    assert answer.result(120) == (340, None)
    assert process.wait(60) == 0
    assert "ending once the requests under way are done" in process.stdout.read()
    assert process.stderr.read() == ""
