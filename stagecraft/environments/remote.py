"""Environments behind HTTP: the contract of NeMo Gym's resource servers (`/seed_session`, a path for each tool, `/verify`), as a client."""

from __future__ import annotations

from typing import Any

import requests

from stagecraft.contract.errors import UserError
from stagecraft.environments.api import Item, Row
from stagecraft.environments.items import response
from stagecraft.environments.reward import Reward


class RemoteEnvironment:
    """A resource server, real or ours, that is up.

    Args:
        url: its address, without a path.
        seconds: to wait for an answer; verifying may run programs.
    """

    def __init__(self, url: str, seconds: float = 60.0):
        self._url, self._seconds = url.rstrip("/"), seconds

    def seed(self, row: Row) -> RemoteSession:
        """Begin a conversation; the server knows it by a cookie.

        Raises:
            UserError: no answer, or one that is no success.
        """
        session = RemoteSession(self._url, row, self._seconds)
        session.post("seed_session", row)
        return session


class RemoteSession:
    """One conversation on a resource server."""

    def __init__(self, url: str, row: Row, seconds: float):
        self._url, self._row, self._seconds, self._http = url, row, seconds, requests.Session()

    def post(self, path: str, body: Any, strict: bool = True) -> requests.Response:
        """Send JSON; `strict` makes a status that is no success an error."""
        where = f"{self._url}/{path}"
        try:
            answer = self._http.post(where, json=body, timeout=self._seconds)
        except requests.RequestException as error:
            raise UserError(f"no answer: {type(error).__name__}", where=where, mend="start the resource server") from None
        if strict and not answer.ok:
            raise UserError(f"HTTP {answer.status_code}: {answer.text[:200]}", where=where,
                            mend="check that the row is one of this environment")
        return answer

    def call(self, tool: str, arguments: Any) -> str:
        """As in `Session`; a refusal of the server is an answer to the policy, as in NeMo Gym's own agent."""
        if not tool.replace("_", "").isalnum() or tool in ("verify", "seed_session"):
            return '{"error": "there is no such tool"}'
        answer = self.post(tool, arguments, strict=False)
        return answer.text if answer.ok else '{"error": ' + answer.text + "}"

    def reply(self, text: str) -> str | None:
        """As in `Session`: the tools and the verdict are all that the contract has."""
        return None

    def verify(self, output: list[Item]) -> Reward:
        """As in `Session`; other numbers in the server's answer, and those in its `parts`, become the parts."""
        answer = self.post("verify", {**self._row, "response": response(output)}).json()
        found = {**{key: value for key, value in answer.items() if key not in self._row}, **answer.get("parts", {})}
        parts = {key: float(value) for key, value in found.items() if key != "reward" and isinstance(value, (bool, int, float))}
        return Reward(float(answer["reward"]), parts)
