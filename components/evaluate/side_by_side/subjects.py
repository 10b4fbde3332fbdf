"""Who is compared: a checkpoint that is served for the occasion, or an endpoint that is up already; and what is known of each."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse

from components.evaluate.protocol import Model, engine_version, hardware, plugin_digest, precision_of
from components.evaluate.side_by_side.plan import Plan
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import digest_of, sha256
from stagecraft.inference.server import Server
from stagecraft.inference.server_settings import fitting

UNTOLD = "not told"
"""What an endpoint keeps to itself; it never equals what a checkpoint served here is known to have."""
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True)
class Subject:
    """One of those compared.

    Attributes:
        name: in tables and figures.
        where: a checkpoint directory, or the address of an OpenAI endpoint.
        digest: of a checkpoint whose files were compared with its manifest; None: that of its files as they are.
    """

    name: str
    where: Path | str
    digest: str | None = None

    @property
    def model(self) -> Model:
        """Digest and precision of a checkpoint; of an endpoint nobody can say."""
        if isinstance(self.where, str):
            return Model(self.name, UNTOLD, UNTOLD)
        digest = self.digest or digest_of({path.name: sha256(path) for path in sorted(self.where.iterdir()) if path.is_file()})
        return Model(self.name, digest, precision_of(self.where))

    @contextmanager
    def up(self, plan: Plan, log: Path) -> Iterator[str]:
        """The address of its API, without /v1; a checkpoint is served inside the block."""
        if isinstance(self.where, str):
            yield self.where
            return
        with Server(self.where, fitting(plan.server, self.where), log) as server:
            yield server.url

    def conditions(self, plan: Plan) -> dict[str, Any]:
        """The part of the protocol that is the subject's own: engine, hardware, precision of computing, limits."""
        if not isinstance(self.where, str):
            server = fitting(plan.server, self.where)
            return {"engine": " ".join(engine_version()), "plugin": plugin_digest(), "hardware": hardware(), "compute_dtype": server.dtype,
                    "tensor": server.tensor, "threads": server.threads, "max_model_len": server.max_model_len,
                    "max_num_seqs": server.max_num_seqs, "draft_tokens": server.draft_tokens, "prefix_caching": False}
        local = urlparse(self.where).hostname in _LOOPBACK
        served = ask(self.where, "/v1/models")["data"][0]
        return {"engine": UNTOLD, "plugin": UNTOLD, "hardware": hardware() if local else UNTOLD, "compute_dtype": UNTOLD, "tensor": UNTOLD,
                "threads": UNTOLD, "max_model_len": served.get("max_model_len", UNTOLD), "max_num_seqs": UNTOLD, "draft_tokens": UNTOLD,
                "prefix_caching": UNTOLD}


def served_name(address: str) -> str:
    """The name of the (first) model that an endpoint serves.

    Raises:
        UserError: nothing answers there, or it is no OpenAI endpoint.
    """
    try:
        return ask(address, "/v1/models")["data"][0]["id"]
    except (KeyError, IndexError, TypeError):
        raise UserError("no OpenAI endpoint: it lists no models", where=address, mend="give the address that ends before /v1") from None


def ask(address: str, path: str) -> Any:
    """A JSON answer of an endpoint; `OPENAI_API_KEY` is presented where it is set.

    Raises:
        UserError: nothing answers, or not with JSON.
    """
    key = os.environ.get("OPENAI_API_KEY")
    try:
        request = urllib.request.Request(address + path, headers={"Authorization": f"Bearer {key}"} if key else {})
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)
    except HTTPError as error:
        raise UserError(f"the endpoint refuses: {error.code} {error.reason}", where=address,
                        mend="give another address, or set OPENAI_API_KEY") from None
    except (OSError, ValueError, HTTPException) as error:
        raise UserError(f"no endpoint answers: {getattr(error, 'reason', error)}", where=address,
                        mend="start it, or give another address") from None
