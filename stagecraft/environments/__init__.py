"""Environments with verifiable rewards: `verify(row, completion)` is the whole interface of single-turn tasks."""

from stagecraft.environments.reward import Reward
from stagecraft.environments.verify import split_thinking, verify

__all__ = ["Reward", "split_thinking", "verify"]
