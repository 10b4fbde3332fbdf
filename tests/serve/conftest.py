"""A tiny random model that an evaluation is said to have promoted, and one run of the stage on it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from components.serve import stage
from stagecraft.contract import manifest
from stagecraft.contract.files import write_json
from stagecraft.contract.params import load
from stagecraft.contract.runlog import RunLog
from stagecraft.data.tokenizer import CHAT_TEMPLATE
from stagecraft.inference.server import Server
from tests.checkpoints import tiny_checkpoint
from tests.serve.parrot import parrot
from tests.serve.speech import LINES

PROFILE = Path(__file__).parents[2] / "params.yaml"


def params() -> stage.Params:
    """The repository's parameters, with less of everything but patience: the machine may be busy."""
    whole = load(stage.Params, "serve", PROFILE)
    return replace(whole, server=replace(whole.server, startup_seconds=900.0),
                   check=replace(whole.check, prompts_per_family=1, max_tokens=24), modes=replace(whole.modes, prompts=4, max_tokens=24),
                   load=replace(whole.load, concurrencies=[1, 3], requests=1, max_tokens=32))


def promote(root: Path, name: str | None, digest: str = "", reason: str = "made for the tests") -> None:
    write_json(root / "evaluation" / "promotion.json",
               {"promoted": name, "reason": reason, "digest": digest or None, "protocol_digest": "p" * 64})


def inputs(root: Path) -> dict[str, Path]:
    return {name: root / name for name in ("aligned", "fp8", "nvfp4", "evaluation")}


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A directory with an artifact `aligned`, promoted."""
    root = tmp_path_factory.mktemp("serve")
    tiny_checkpoint(root / "aligned")
    (root / "aligned" / "chat_template.jinja").write_text(CHAT_TEMPLATE.read_text())
    digest = manifest.write(root / "aligned", stage="rl", params={}, inputs={}, code="", environment={}, metrics={})
    promote(root, "aligned", digest)
    return root


@pytest.fixture(scope="session")
def parroting(tmp_path_factory) -> Iterator[Server]:
    """A server, as it is deployed here, of a model whose answers are known."""
    root = tmp_path_factory.mktemp("parrot")
    with Server(parrot(root / "parrot", LINES), params().server, root / "log") as server:
        yield server


@pytest.fixture
def proxy(monkeypatch) -> Iterator[None]:
    """The environment names a proxy, which cannot reach this machine's loopback interface, and one host that is asked without it."""
    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(502)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for name, value in (("http_proxy", f"http://127.0.0.1:{server.server_port}"), ("no_proxy", "models.test")):
            for spelling in (name, name.upper()):
                monkeypatch.setenv(spelling, value)
        yield
        server.shutdown()


@dataclass
class Served:
    """What one run of the stage wrote and returned."""

    metrics: dict
    out: Path

    def read(self, name: str) -> dict:
        return json.loads((self.out / name).read_text())


@pytest.fixture(scope="session")
def served(project) -> Served:
    out, work = project / "serving", project / "work"
    out.mkdir()
    work.mkdir()
    return Served(stage.main(params(), inputs(project), {"serving": out}, RunLog("serve", project / "plots", work)), out)
