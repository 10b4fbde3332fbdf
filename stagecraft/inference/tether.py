"""Runs a module as `python -m MODULE` would, in a process group that ends when whoever started it does.

`python -m stagecraft.inference.tether MODULE ARGUMENT...`: standard input is the tether. It closes when its other end does,
however that process ended, and then the whole group is killed. (PR_SET_PDEATHSIG would follow the starting thread, not the
process, and would leave the group's other members alone.)
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from threading import Thread

from stagecraft.inference.imports import without_scientific_libraries


def hold() -> None:
    """Kill this process group as soon as standard input ends. The caller must lead a group of its own."""
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    Thread(target=hold, name="tether", daemon=True).start()
    sys.argv = sys.argv[1:]
    if sys.argv[0].startswith("vllm."):
        without_scientific_libraries()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
