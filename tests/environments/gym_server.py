"""Run by NeMo Gym's own Python: one of its resource servers on a port of loopback, as its classes build it."""

import sys
from importlib import import_module
from unittest.mock import MagicMock

import uvicorn
from nemo_gym.server_utils import ServerClient

module, prefix, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
app = import_module(f"resources_servers.{module}.app")
config = getattr(app, f"{prefix}ResourcesServerConfig")(host="127.0.0.1", port=port, entrypoint="app.py", name=module)
# The client to other servers is never asked: neither of the two under test calls one.
server = getattr(app, f"{prefix}ResourcesServer")(config=config, server_client=MagicMock(spec=ServerClient))
uvicorn.run(server.setup_webserver(), host="127.0.0.1", port=port, log_level="warning")
