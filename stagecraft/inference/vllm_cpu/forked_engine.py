"""The engine's process is a fork of the server's.

Upstream: platforms/cpu.py:409 (`check_and_update_config`) asks for `spawn`: the process imports torch and vLLM once more, which is a good
part of the time that a server of a small model takes to start, and holds them twice. Nothing is computed before the fork, so that no
thread of OpenMP is lost by it.
"""

from __future__ import annotations

import multiprocessing

from vllm.v1.engine import utils


def mend() -> None:
    utils.get_mp_context = lambda: multiprocessing.get_context("fork")
