"""Environments of one turn without tools: the last message is all that counts."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from stagecraft.environments.api import Environment, Item, LocalSession, Row
from stagecraft.environments.items import last_message
from stagecraft.environments.reward import Reward


class SingleTurn(Environment):
    """Judges text. `expected` of a row is what the judge needs to know."""

    @abstractmethod
    def judge(self, expected: Any, answer: str) -> dict[str, float]:
        """Named findings in [0, 1]; `correct` is the score."""

    def seed(self, row: Row) -> LocalSession:
        """As in `Environment`."""
        return _Judged(self, row["expected"])


class _Judged(LocalSession):
    def __init__(self, environment: SingleTurn, expected: Any):
        super().__init__()
        self._environment, self._expected = environment, expected

    def verify(self, output: list[Item]) -> Reward:
        parts = self._environment.judge(self._expected, last_message(output))
        return Reward(parts["correct"], parts)
