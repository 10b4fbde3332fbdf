"""Environments with verifiable rewards: `verify(row, completion)` for task rows of one turn, `api.Environment` for everything else."""

from stagecraft.environments.reward import Reward
from stagecraft.environments.verify import split_thinking, verify

__all__ = ["Reward", "split_thinking", "verify"]
