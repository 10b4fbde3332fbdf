"""`stagecraft ui`: one page with the pipeline's report and a chat with the served model; MLflow's interface beside it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from stagecraft.contract.address import without_version
from stagecraft.contract.ports import listener
from stagecraft.contract.tracking import DEFAULT_URI, served, without_password

HOST = "127.0.0.1"
_MEND = "choose another: make ui PORT=5001"


def main(arguments: Sequence[str]) -> None:
    """Serve the page until Ctrl-C; MLflow, where its record is a database, runs as a child that ends with it.

    Raises:
        UserError: the port is taken, or the model server's address is none.
    """
    parser = argparse.ArgumentParser(prog="stagecraft ui", description=__doc__)
    parser.add_argument("--port", type=int, default=5000, help="port on the loopback interface (default: 5000)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server the chat talks to (default: http://127.0.0.1:8000)")
    parser.add_argument("--no-mlflow", action="store_true", help="the page alone: MLflow takes half a gigabyte")
    chosen = parser.parse_args(arguments)
    upstream = without_version(chosen.url)
    listening = listener(HOST, chosen.port, _MEND)  # whoever reads the address below may ask at once
    uri = "" if chosen.no_mlflow else os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_URI)
    child, mlflow = _start_mlflow(uri) if uri and not served(uri) else (None, without_password(uri))
    import uvicorn

    from stagecraft.cli.page.app import application

    print(f"the report and the chat on http://{HOST}:{listening.getsockname()[1]} (Ctrl-C ends it)", flush=True)
    if mlflow:
        print(f"MLflow on {mlflow}", flush=True)
    server = uvicorn.Server(uvicorn.Config(application(Path.cwd(), upstream, mlflow), log_level="warning", server_header=False,
                                           timeout_graceful_shutdown=2))
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        if child:
            child.stdin.close()  # its tether


def _start_mlflow(uri: str) -> tuple[subprocess.Popen, str]:
    """MLflow's server of a database on a free port, in a group that ends with this process: (process, address)."""
    with listener(HOST, 0, _MEND) as probe:
        port = probe.getsockname()[1]
    # With one worker and no jobs: 0.5 GB of memory instead of 1.7.
    process = subprocess.Popen(
        [sys.executable, "-m", "stagecraft.inference.tether", "mlflow", "server", "--backend-store-uri", uri, "--host", HOST,
         "--port", str(port), "--workers", "1"],
        stdin=subprocess.PIPE, start_new_session=True, env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    return process, f"http://{HOST}:{port}"
