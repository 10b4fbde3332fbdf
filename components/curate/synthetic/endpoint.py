"""Asks a model behind an OpenAI endpoint, several prompts at a time; every reply is on disk before it is used, so a kill loses none."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from components.curate.params import EndpointParams
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import digest_of

_WHERE = "curate.synthetic.endpoint"


class Endpoint:
    """A model and the replies it has given.

    Args:
        params: which, and how it is asked.
        cache: JSON lines of the replies so far, each under a digest of all that was asked for; made if it is not there.

    Raises:
        UserError: the variable named for the key is not set.
    """

    def __init__(self, params: EndpointParams, cache: Path):
        self._params, self._cache, self._lock = params, cache, threading.Lock()
        self._key = ""
        if params.key_variable:
            self._key = os.environ.get(params.key_variable, "")
            if not self._key:
                raise UserError(f"the environment variable {params.key_variable} is not set", where=f"{_WHERE}.key_variable",
                                mend="export the endpoint's key in it, or set key_variable to \"\" if it needs none")
        self._replies = _read(cache)
        self.asked = 0

    def replies(self, prompts: Sequence[str]) -> Iterator[str]:
        """The replies in the order of the prompts; those known from an earlier run are not asked for again.

        Raises:
            UserError: the endpoint cannot be reached, refuses, or still fails after `max_retries` retries with growing pauses.
        """
        from openai import OpenAI  # slow to import, and needed only here

        client = OpenAI(base_url=self._params.url, api_key=self._key or "none", timeout=self._params.timeout_seconds,
                        max_retries=self._params.max_retries)
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
            text = self._ask(client, asked)
            with self._lock, self._cache.open("a") as stream:
                self.asked += 1
                self._replies[key] = text
                stream.write(json.dumps({"key": key, "reply": text}) + "\n")
        return self._replies[key]

    def _ask(self, client: Any, asked: dict[str, Any]) -> str:
        from openai import APIConnectionError, APIError, APIStatusError, AuthenticationError, PermissionDeniedError

        url, again = self._params.url, "the replies so far are kept: run again when it answers"
        try:
            choices = client.chat.completions.create(**asked).choices
            return str(choices[0].message.content or "")
        except APIConnectionError as error:
            raise UserError(f"the endpoint cannot be reached: {error.__cause__ or error}", where=url,
                            mend=f"correct {_WHERE}.url, or leave it empty for templates; {again}") from None
        except (AuthenticationError, PermissionDeniedError) as error:
            raise UserError(f"the endpoint refuses the key: {error.message}", where=url,
                            mend=f"put a valid key into the environment variable that {_WHERE}.key_variable names") from None
        except APIStatusError as error:
            told = f"the endpoint answers {error.status_code}: {error.message}"
            mend = again if error.status_code in (408, 409, 429) or error.status_code >= 500 else f"correct {_WHERE}.url or .model"
            raise UserError(told, where=url, mend=mend) from None
        except (APIError, ValueError, IndexError, AttributeError, TypeError) as error:
            raise UserError(f"what answers is no OpenAI endpoint: {error}", where=url, mend=f"correct {_WHERE}.url") from None


def _read(path: Path) -> dict[str, str]:
    """The replies in a file; a line that a kill cut short is taken away."""
    if not path.is_file():
        return {}
    data = path.read_bytes()
    whole = data[:data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return {entry["key"]: entry["reply"] for entry in map(json.loads, whole.splitlines())}
