"""The variables that tell a process which rank of a job it is."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

# torchrun's (torch/distributed/elastic/agent/server/local_elastic_agent.py)
_VARIABLES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK",
              "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
_PREFIX = "TORCHELASTIC_"


def unranked(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that a rank starts and that is none itself: an engine with groups of its own."""
    return {name: value for name, value in environment.items() if name not in _VARIABLES and not name.startswith(_PREFIX)}


def leave_interrupts_to_the_first() -> None:
    """Have Ctrl-C, which a terminal sends to all ranks, end rank 0 alone, which ends the others.

    Rank 0 waits for the others where it hears no signal, so one that ended by itself would have it hang, or fail instead. Under torchrun
    nothing changes: there nobody else ends a rank.
    """
    if not any(name.startswith(_PREFIX) for name in os.environ):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
