"""`stagecraft serve` and `stagecraft chat`, as they are typed."""

import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from ruamel.yaml import YAML

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
    profile["serve"]["server"]["draft_tokens"] = 0
    with (root / "params.yaml").open("w") as stream:
        YAML(typ="safe").dump(profile, stream)
    shutil.copytree(project / "aligned", root / "artifacts" / "aligned")
    promote(root / "artifacts", "aligned", "d")
    return root


@pytest.fixture(scope="module")
def url(workplace):
    """`stagecraft serve` on a free port; ended as Ctrl-C ends it, and nothing of it may be left."""
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([*COMMAND, "serve", "--port", str(port)], cwd=workplace, stdout=subprocess.PIPE, text=True)
    lines = [process.stdout.readline() for _ in range(4)]
    assert "vllm.entrypoints.openai.api_server --model artifacts/aligned" in lines[0], lines
    assert f"on {address}/v1" in lines[2], lines
    yield address
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    process.stdout.close()
    time.sleep(0.2)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


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


def test_metrics_are_served(url):
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as response:
        assert b"vllm:" in response.read()


def test_serve_on_a_busy_port(workplace, url):
    refused = _run("serve", "--port", url.rpartition(":")[2], cwd=workplace)
    assert refused.returncode == 2
    assert "cannot listen there: Address already in use" in refused.stderr and refused.stderr.count("\n") == 1


def test_chat_without_a_server(tmp_path):
    refused = _run("chat", "--url", f"http://127.0.0.1:{_free_port()}", "hello", cwd=tmp_path)
    assert refused.returncode == 2
    assert "no server answers - start one with `stagecraft serve`" in refused.stderr and refused.stderr.count("\n") == 1


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
    assert "there is no promoted model: too weak - name a checkpoint to serve" in nothing.stderr


