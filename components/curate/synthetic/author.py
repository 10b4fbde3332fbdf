"""Asks a model behind an OpenAI endpoint, several prompts at a time; every reply is on disk before it is used, so a kill loses none."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from components.curate.params import AuthorParams
from stagecraft.contract.files import digest_of
from stagecraft.endpoint import Endpoint


class Author:
    """A model and the replies it has given.

    Args:
        params: which, and how it is asked.
        cache: JSON lines of the replies so far, each under a digest of all that was asked for; made if it is not there.

    Raises:
        UserError: the variable named for the key is not set.
    """

    def __init__(self, params: AuthorParams, cache: Path):
        self._params, self._cache, self._lock = params, cache, threading.Lock()
        self._endpoint = Endpoint(params, "curate.synthetic.endpoint", "templates", params.max_retries)
        self._replies = _read(cache)
        self.asked = 0

    def replies(self, prompts: Sequence[str]) -> Iterator[str]:
        """The replies in the order of the prompts; those known from an earlier run are not asked for again.

        Raises:
            UserError: as `Endpoint.failures`.
        """
        from openai import OpenAI  # slow to import, and needed only here

        client = OpenAI(**self._endpoint.client)
        pool = ThreadPoolExecutor(self._params.concurrency)
        try:
            yield from pool.map(lambda prompt: self._reply(client, prompt), prompts)
        finally:
            pool.shutdown(cancel_futures=True)
            client.close()

    def _reply(self, client: Any, prompt: str) -> str:
        asked = {"model": self._params.model, "messages": [{"role": "user", "content": prompt}], "temperature": self._params.temperature,
                 "max_completion_tokens": self._params.max_tokens, "response_format": {"type": "json_object"}}
        key = digest_of([self._params.url, asked])
        if key not in self._replies:
            with self._endpoint.failures():
                text = str(client.chat.completions.create(**asked).choices[0].message.content or "")
            with self._lock, self._cache.open("a") as stream:
                self.asked += 1
                self._replies[key] = text
                stream.write(json.dumps({"key": key, "reply": text}) + "\n")
        return self._replies[key]


def _read(path: Path) -> dict[str, str]:
    """The replies in a file; a line that a kill cut short is taken away."""
    if not path.is_file():
        return {}
    data = path.read_bytes()
    whole = data[:data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return {entry["key"]: entry["reply"] for entry in map(json.loads, whole.splitlines())}
