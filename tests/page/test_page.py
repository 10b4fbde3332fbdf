"""The page without a browser: what it reads, what it escapes, what it lets a browser do, and what it passes on to the server."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import uvicorn
from starlette.testclient import TestClient

from stagecraft.cli import chat, ui
from stagecraft.cli.page.app import LARGEST, application
from stagecraft.cli.page.record import HEIGHT, WIDTH, collect
from stagecraft.contract.errors import UserError
from tests.page.tree import HOSTILE, write_tree
from tests.processes import answers

QUESTION = {"messages": [{"role": "user", "content": "hi"}]}


class Upstream(BaseHTTPRequestHandler):
    """Speaks just enough of the API to be asked wrongly: it keeps what came, and may refuse or die in mid-answer."""

    asked: ClassVar[list] = []
    refuse = cut = False
    key = None

    def do_GET(self):
        if self.key and self.headers["Authorization"] != f"Bearer {self.key}":
            return self._send(401, "application/json", b'{"error": "Unauthorized"}')
        return self._send(200, "application/json", b'{"data": [{"id": "m", "max_model_len": 384}]}')

    def do_POST(self):
        self.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        if self.refuse:
            self._send(400, "application/json", b'{"error": {"message": "too long"}}')
        elif self.cut:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"data: {}\n\n")
        else:
            self._send(200, "text/event-stream", b'data: {"choices": []}\n\ndata: [DONE]\n\n')

    def _send(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def upstream():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(upstream, tmp_path, monkeypatch):
    monkeypatch.setattr(Upstream, "asked", [])
    with TestClient(application(write_tree(tmp_path), upstream, "http://127.0.0.1:5555"), base_url="http://127.0.0.1") as opened:
        yield opened


def test_the_record_is_read(tmp_path):
    record = collect(write_tree(tmp_path))
    assert [stage.name for stage in record.stages if stage.done] == ["rl"]
    rl = next(stage for stage in record.stages if stage.name == "rl")
    assert rl.figures["families.sort.exact_match"] == 0.25
    reward, hostile = rl.curves  # a column with one value is no curve
    assert reward.path == f"M0.0,{HEIGHT:.1f} L{WIDTH / 2:.1f},0.0 L{WIDTH:.1f},{HEIGHT / 2:.1f}"
    assert (reward.first, reward.last, reward.least, reward.most, reward.steps) == (0.0, 0.5, 0.0, 1.0, (1.0, 3.0))
    assert hostile.last == 4.0  # nan is left out
    aligned = record.models[0]
    z, n, right = 1.959964, 100, 68  # Wilson 1927, in closed form
    middle, half = right + z * z / 2, z * (right * (n - right) / n + z * z / 4) ** 0.5
    bounds = pytest.approx([(middle - half) / (n + z * z), (middle + half) / (n + z * z)], abs=1e-5)
    assert [aligned.exact_match.low, aligned.exact_match.high] == bounds == [
        aligned.families["sort"].low, aligned.families["sort"].high]
    (low,) = record.modes
    assert (low.name, low.exact_match.value, low.answer_tokens.high) == ("low", 0.25, 3.0)
    assert low.thinking_tokens.low == pytest.approx(5.5 - 1.96 * 0.5, abs=1e-4)
    assert [artifact.name for artifact in record.artifacts] == ["sft", "aligned"]
    assert record.artifacts[1].inputs == {"sft": "e" * 64}


def test_an_empty_or_broken_tree_is_a_page_too(tmp_path, upstream):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "rl.json").write_text("{")
    (tmp_path / "plots" / "sft").mkdir(parents=True)
    (tmp_path / "plots" / "sft" / "train.csv").write_bytes(b"\xff\xfe")
    with TestClient(application(tmp_path, upstream), base_url="http://127.0.0.1") as client:
        text = client.get("/").text
    assert "Reasoning modes" not in text and text.count("not run") == 7 and "MLflow" not in text
    assert "No evaluation here yet" in text and "No artifacts here yet" in text


def test_everything_is_escaped_and_nothing_comes_from_elsewhere(client):
    answer = client.get("/")
    assert "5.5 (4.5 to 6.5)" in answer.text
    assert HOSTILE not in answer.text and answer.text.count("&lt;script&gt;") >= 3
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'") and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "style=" not in answer.text and "onclick" not in answer.text
    assert 'href="http://127.0.0.1:5555"' in answer.text
    for asset in ("/page.js", "/page.css", "/icon.svg"):
        assert client.get(asset).status_code == 200


def test_a_report_may_run_no_script(client):
    answer = client.get("/report/evaluation")
    assert "the report" in answer.text and "sandbox" in answer.headers["content-security-policy"]
    assert "script-src" not in answer.headers["content-security-policy"]
    for other in ("corpus", "base", "..%2f..%2fetc", "x"):
        assert client.get(f"/report/{other}").status_code == 404


def test_a_question_is_passed_on_to_the_server_alone(client):
    assert client.get("/api/model").json() == {"name": "m", "context": 384}
    answer = client.post("/api/chat", json={**QUESTION, "thinking": False})
    assert answer.headers["content-type"].startswith("text/event-stream") and answer.text.endswith("data: [DONE]\n\n")
    ((path, asked),) = Upstream.asked
    assert path == "/v1/chat/completions"
    assert asked["messages"] == QUESTION["messages"] and asked["stream"] and asked["model"] == "m" and "tools" not in asked
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize(("body", "status"), [
    ({"messages": []}, 400), ({}, 400), ({**QUESTION, "model": "other"}, 400), ({**QUESTION, "max_tokens": 0}, 400),
    ({"messages": [{"content": "x" * LARGEST}]}, 413),
])
def test_a_question_that_is_none_goes_nowhere(client, body, status):
    answer = client.post("/api/chat", json=body)
    assert answer.status_code == status and answer.json()["error"]["message"]
    assert not Upstream.asked


def test_other_sites_cannot_ask(client):
    assert client.post("/api/chat", content=json.dumps(QUESTION), headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.get("/", headers={"Host": "elsewhere.example"}).status_code == 400
    assert client.get("/api/chat").status_code == 405
    assert not Upstream.asked


def test_what_the_server_refuses_or_breaks_off_is_told(client, monkeypatch):
    monkeypatch.setattr(Upstream, "refuse", True)
    answer = client.post("/api/chat", json=QUESTION)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "too long")
    monkeypatch.setattr(Upstream, "refuse", False)
    monkeypatch.setattr(Upstream, "cut", True)
    *_, last = client.post("/api/chat", json=QUESTION).text.strip().split("\n\n")
    assert "the server ended in the middle of its answer" in json.loads(last.removeprefix("data: "))["error"]["message"]


def test_the_key_of_a_server_is_presented_and_asked_for(upstream, tmp_path, monkeypatch):
    monkeypatch.setattr(Upstream, "key", "secret")
    for given, status in (("", 401), ("secret", 200)):
        monkeypatch.setenv("OPENAI_API_KEY", given)
        with TestClient(application(tmp_path, upstream), base_url="http://127.0.0.1") as opened:
            said = opened.get("/api/model"), opened.post("/api/chat", json=QUESTION)
            assert [answer.status_code for answer in said] == [status, status]
            assert ("OPENAI_API_KEY" in said[0].text) == (status == 401)
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    with pytest.raises(UserError, match="401 - set OPENAI_API_KEY"):
        chat.main(["hi", "--url", upstream])


def test_without_a_server(tmp_path):
    with TestClient(application(tmp_path, "http://127.0.0.1:9"), base_url="http://127.0.0.1") as client:
        for answer in (client.get("/api/model"), client.post("/api/chat", json=QUESTION)):
            assert answer.status_code == 503 and "stagecraft serve" in answer.json()["error"]["message"]


def test_the_command(tmp_path):
    """As it is typed, MLflow beside it; both end with it."""
    def command(*arguments):
        return [sys.executable, "-m", "stagecraft.cli.main", "ui", *arguments]

    process = subprocess.Popen(command("--port", "0"), cwd=write_tree(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True, env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"})
    try:
        page, mlflow = (process.stdout.readline().split("http://")[1].split()[0] for _ in range(2))
        with urllib.request.urlopen(f"http://{page}", timeout=60) as answer:
            assert b"was promoted" in answer.read()
        taken = subprocess.run(command("--no-mlflow", "--port", page.rpartition(":")[2]), cwd=tmp_path, capture_output=True, text=True)
        assert taken.returncode == 2 and "cannot listen there: Address already in use" in taken.stderr
        _until(lambda: urllib.request.urlopen(f"http://{mlflow}/health", timeout=5).status == 200)
    finally:
        process.terminate()
        process.communicate(timeout=30)
    _until(lambda: not answers(f"http://{mlflow}/health"), seconds=20)
    wrong = subprocess.run(command("--url", "nowhere"), cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: nowhere: no address of a server")
    with pytest.raises(UserError, match="no address of a server: Invalid IPv6 URL"):
        ui.main(["--url", "http://[::1"])


@pytest.mark.parametrize(("uri", "told"), [("", []), ("https://me:s3cret@mlflow.test/x", ["MLflow on https://mlflow.test/x"])])
def test_the_command_starts_no_mlflow_where_there_is_none_or_a_server(tmp_path, monkeypatch, capsys, uri, told):
    def shown(server, sockets):
        page = TestClient(server.config.app, base_url="http://127.0.0.1").get("/").text
        assert "s3cret" not in page and ('href="https://mlflow.test/x">MLflow' in page) == bool(uri)
        sockets[0].close()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(uvicorn.Server, "run", shown)
    monkeypatch.setattr(subprocess, "Popen", None)
    ui.main(["--port", "0"])
    assert capsys.readouterr().out.splitlines()[1:] == told
    assert not list(tmp_path.iterdir())


def _until(true, seconds=120):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.2)
