"""vLLM's OpenAI server as a child process: started, waited for, watched, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from stagecraft.contract.address import reach_loopback
from stagecraft.contract.errors import UserError
from stagecraft.contract.ports import claimed, listener
from stagecraft.contract.ranks import unranked
from stagecraft.inference.hardware import OF_ALL, OF_MANY, Hardware
from stagecraft.inference.server_settings import LOOPBACK, Settings, local_arguments, machine_arguments

MODULE = "vllm.entrypoints.openai.api_server"
MEND = "choose another with --port, or end what uses it"
LAST_LINES = 15
STOP_SECONDS = 10.0


class ServerDiedError(RuntimeError):
    """The server ended, or did not become healthy; the message holds the last lines of its log."""


class ServerLateError(ServerDiedError):
    """The server was still starting when its time was over."""


class Server:
    """A server on the loopback interface, up inside a `with` block; `running` starts several side by side.

    Args:
        model: a checkpoint directory.
        settings: see Settings.
        log: file that receives everything the server says.
        port: 0 picks a free one.
        hardware: this machine, for a server that may have all of it; None: a lean server, beside which others have room.
        drain_seconds: what requests under way are given to finish once the server is told to end; with `hardware` only.

    Attributes:
        arguments: vLLM's, as on its command line.

    Raises:
        UserError: the directory is no checkpoint, the port is taken, or the machine is too small.
        ServerDiedError: on entering the block.
    """

    def __init__(self, model: Path, settings: Settings, log: Path, port: int = 0, hardware: Hardware | None = None,
                 drain_seconds: int = 0):
        check_checkpoint(model)
        self.model, self.settings, self.log = model, settings, log
        with listener(LOOPBACK, port, MEND) as probe:
            self.port = probe.getsockname()[1]
        self.arguments = (machine_arguments(model, settings, self.port, hardware, drain_seconds) if hardware
                          else local_arguments(model, settings, self.port))
        self._lean, self._stop_seconds = hardware is None, STOP_SECONDS + drain_seconds
        self._process: subprocess.Popen | None = None
        self._claim: socket.socket | None = None
        self._starts = 0

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int:
        """Of the process that was started, while it runs."""
        return self._process.pid

    @property
    def command(self) -> str:
        """The command as one would type it."""
        return shlex.join(["python", "-m", MODULE, *self.arguments])

    def start(self) -> None:
        """Start the process, not before the last one has gone; does not wait. A second start adds to the log.

        From then on this process asks the loopback interface past any proxy: it is the server's client.

        Raises:
            UserError: another server has been started at the port since this one was made.
        """
        self._claim = claimed(self.port, MEND)
        reach_loopback()
        environment = {
            **unranked(os.environ), **OF_ALL, **(OF_MANY if self.settings.tensor > 1 else {}),
            "OMP_NUM_THREADS": str(self.settings.threads),
        }
        if self._lean:  # its client is whoever starts it, and asks without the key that guards a server kept up for others
            environment.pop("VLLM_API_KEY", None)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if not self._starts:
            self.log.write_bytes(b"")  # and only added to from then on: nobody writes over what another one wrote
        with self.log.open("a") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stagecraft.inference.tether", MODULE, *self.arguments],
                stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        self._starts += 1

    def wait_healthy(self) -> None:
        """Return once the server answers.

        Raises:
            ServerDiedError: it ended first.
            ServerLateError: `startup_seconds` passed.
        """
        deadline = time.monotonic() + self.settings.startup_seconds
        while not self.healthy():
            if not self.alive():
                raise ServerDiedError(self._last_words(f"ended with status {self._process.returncode} before it was healthy"))
            if time.monotonic() > deadline:
                raise ServerLateError(self._last_words(f"was not healthy after {self.settings.startup_seconds:g} seconds"))
            time.sleep(0.2)

    def healthy(self) -> bool:
        """Whether the server answers its health check."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as response:
                return response.status == 200
        except OSError:
            return False

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def watch(self) -> None:
        """Block for as long as the server lives.

        Raises:
            ServerDiedError: it ended.
        """
        self._process.wait()
        raise ServerDiedError(self._last_words(f"ended with status {self._process.returncode}"))

    def terminate(self) -> None:
        """Ask the server to end; does not wait."""
        if self.alive():
            self._process.terminate()

    def stop(self) -> None:
        """End the server and all it started: asked first, killed when the time to drain and `STOP_SECONDS` are over."""
        if self._process is None:
            return
        self.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._stop_seconds)
        finally:  # also when whoever waits is told to end a second time
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process.stdin.close()
            self._claim.close()
            self._process = None

    def __enter__(self) -> Server:
        try:
            self.start()
            self.wait_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _last_words(self, what: str) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else ["it is gone"]
        return "\n".join([f"the server of {self.model} {what}; the last lines of {self.log}:", *lines[-LAST_LINES:]])


@contextlib.contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Have several servers up: they start side by side, and end side by side."""
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait_healthy()
        yield
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.stop()


def check_checkpoint(model: Path) -> None:
    """Look at a directory before an engine is started on it: its configuration, its tokenizer, the header of its weight files.

    Raises:
        UserError: names the file that is missing or unreadable.
    """
    mend = "give a directory with config.json, tokenizer.json and *.safetensors, such as artifacts/aligned"
    if not model.is_dir():
        raise UserError("no such directory", where=str(model), mend=mend)
    for name in ("config.json", "tokenizer.json"):
        if not (model / name).is_file():
            raise UserError(f"not a checkpoint: no {name}", where=str(model), mend=mend)
        try:
            json.loads((model / name).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"unreadable checkpoint: {error}", where=str(model / name), mend="export it anew") from None
    weights = sorted(model.glob("*.safetensors"))
    if not weights:
        raise UserError("not a checkpoint: no *.safetensors", where=str(model), mend=mend)
    from safetensors import SafetensorError, safe_open

    for path in weights:
        try:
            with safe_open(path, framework="np"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"unreadable checkpoint: {error}", where=str(path), mend="export it anew") from None
