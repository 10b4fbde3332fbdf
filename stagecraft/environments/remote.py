"""Environments behind HTTP: the contract of NeMo Gym's resource servers (`/seed_session`, a path for each tool, `/verify`), as a client."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from stagecraft.contract.address import reach_loopback
from stagecraft.contract.errors import UserError
from stagecraft.environments.api import InvalidCallError, Item, Row
from stagecraft.environments.items import response
from stagecraft.environments.reward import Reward

SECONDS = 60.0  # to wait for an answer; verifying may run programs
RETRIES, BACKOFF = 4, 0.5  # a server that restarts, or has too much to do
_CONNECTIONS = 32  # to a server, of each kind; more requests at once wait for one
_UNHEARD = (429, 502, 503, 504)  # from who did not handle the request
_NOT_TAKEN = (404, 405, 422)  # no such tool; arguments that its schema does not allow (FastAPI's answer)
_NAME = re.compile(r"[A-Za-z0-9_-]+")  # of a tool, as OpenAI's interface allows them


@cache
def _adapters(backoff: float) -> tuple[HTTPAdapter, HTTPAdapter]:
    """What sends calls of tools, and what seeds and verifies. All conversations share them: with a connection each, kept open from turn to
    turn, a process would have more of them than it may have files."""
    again = {"total": RETRIES, "backoff_factor": backoff, "allowed_methods": None, "raise_on_status": False,
             "retry_after_max": SECONDS}  # a server may ask for hours
    once, always = Retry(**again, read=False, status_forcelist=_UNHEARD), Retry(**again, status_forcelist=(500, *_UNHEARD))
    return tuple(HTTPAdapter(max_retries=each, pool_maxsize=_CONNECTIONS, pool_block=True) for each in (once, always))


class RemoteEnvironment:
    """A resource server, real or ours, that is up.

    Args:
        url: its address, without a path.
    """

    def __init__(self, url: str):
        reach_loopback()  # it may be on this machine
        self._url = url.rstrip("/")

    def seed(self, row: Row) -> RemoteSession:
        """Begin a conversation; the server knows it by a cookie.

        Raises:
            UserError: no answer, or one that is no success.
        """
        session = RemoteSession(self._url, row)
        session.post("seed_session", row)
        return session


class RemoteSession:
    """One conversation on a resource server.

    Seeding and verifying are asked again whatever went wrong; a tool, which changes the session, only where it was surely not reached.
    """

    def __init__(self, url: str, row: Row):
        self._url, self._row = url, row
        self._tools, self._ends = requests.Session(), requests.Session()  # two, for an adapter is chosen by how an address begins
        self._ends.cookies = self._tools.cookies
        for session, adapter in zip((self._tools, self._ends), _adapters(BACKOFF)):
            session.mount(url, adapter)

    def post(self, path: str, body: Any) -> requests.Response:
        """Seed or verify: send JSON, get a success.

        Raises:
            UserError: there is none.
        """
        where = f"{self._url}/{path}"
        try:
            answer = self._ends.post(where, json=body, timeout=SECONDS)
        except requests.RequestException as error:
            raise UserError(f"no answer: {type(error).__name__}", where=where, mend="start the resource server") from None
        if not answer.ok:
            raise UserError(f"HTTP {answer.status_code}: {answer.text[:200]}", where=where,
                            mend="check that the row is one of this environment")
        return answer

    def call(self, tool: str, arguments: Any) -> str:
        """As in `Session`; what the server says is an answer to the policy, as in NeMo Gym's own agent, and that it says nothing too."""
        if not _NAME.fullmatch(tool) or tool in ("verify", "seed_session"):
            raise InvalidCallError(json.dumps({"error": f"there is no tool {tool!r}"}))
        try:
            answer = self._tools.post(f"{self._url}/{tool}", json=arguments, timeout=SECONDS)
        except requests.RequestException as error:
            return json.dumps({"error": f"no answer: {type(error).__name__}"})
        if "charset" not in answer.headers.get("Content-Type", ""):
            answer.encoding = "utf-8"  # as NeMo Gym's own agent reads it; requests takes such text for Latin-1
        if answer.status_code in _NOT_TAKEN:
            raise InvalidCallError(answer.text)
        return answer.text

    def reply(self, text: str) -> str | None:
        """As in `Session`: the tools and the verdict are all that the contract has."""
        return None

    def verify(self, output: list[Item]) -> Reward:
        """As in `Session`; other numbers in the server's answer, and those in its `parts`, become the parts.

        Raises:
            UserError: no answer, or none with a reward.
        """
        answer = self.post("verify", {**self._row, "response": response(output)})
        try:
            verdict = answer.json()
            reward = float(verdict["reward"])
            found = {**{key: value for key, value in verdict.items() if key not in self._row}, **(verdict.get("parts") or {})}
            parts = {key: float(value) for key, value in found.items() if key != "reward" and isinstance(value, (bool, int, float))}
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            reward = math.nan
        if not math.isfinite(reward):
            raise UserError(f"no verdict with a reward: {answer.text[:200]}", where=f"{self._url}/verify",
                            mend="correct the resource server")
        return Reward(reward, parts)
