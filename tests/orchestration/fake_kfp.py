"""As much of the Kubeflow Pipelines API as a submission touches, on a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def fake_kfp(answers: Sequence[int | str] = ("SUCCEEDED",), namespace: str = "") -> Iterator[tuple[str, list[dict]]]:
    """Serve; yields the address and the list of run requests received.

    Args:
        answers: what who asks for the run is told, one after the other, the last from then on: a state, an HTTP status, or 0 for a
            connection that breaks.
        namespace: the one that it takes experiments in, where it is a server for several users.
    """
    received: list[dict] = []
    answers = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def answer(self, value, status=200):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if "healthz" in self.path:
                self.answer({"multi_user": False})
            elif "/experiments" in self.path:
                self.answer({"experiments": [], "total_size": 0})
            elif (told := answers.pop(0) if len(answers) > 1 else answers[0]) == 0:
                self.close_connection = True
            elif isinstance(told, int):
                self.answer({"message": "no"}, told)
            else:
                self.answer({"run_id": "run-1", "state": told, "display_name": "run"})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            if "/experiments" in self.path and body.get("namespace", "") != namespace:
                self.answer({"code": 3, "message": "Invalid input error: In multi-user mode, namespace must be specified\nat 1"}, 400)
            elif "/experiments" in self.path:
                self.answer({"experiment_id": "experiment-1", "display_name": body.get("display_name", "")})
            else:
                received.append(body)
                self.answer({"run_id": "run-1", "display_name": body.get("display_name", ""), "state": "PENDING"})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
