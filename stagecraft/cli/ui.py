"""`stagecraft ui`: MLflow's user interface on this project's record."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from stagecraft.contract.errors import UserError
from stagecraft.contract.tracking import DEFAULT_URI


def main(arguments: Sequence[str]) -> None:
    """Become the MLflow server.

    Raises:
        UserError: the port is taken.
    """
    parser = argparse.ArgumentParser(prog="stagecraft ui", description=__doc__)
    parser.add_argument("--port", type=int, default=5000, help="port on the loopback interface (default: 5000)")
    port = parser.parse_args(arguments).port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"cannot listen there: {error.strerror}", where=f"port {port}",
                            mend="choose another: make ui PORT=5001") from None
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # with one worker: 0.5 GB of memory instead of 1.7
    print(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1",
                              "--port", str(port), "--workers", "1"])
