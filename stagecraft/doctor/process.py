"""Asks `python -m stagecraft.doctor.measure` in a process of its own: a sick device hangs or kills whoever touches it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

MODULE = "stagecraft.doctor.measure"


def lines(*arguments: str, timeout: float) -> tuple[list[dict[str, Any]], str]:
    """Run the measurements and collect what they print, one JSON object a line.

    Returns:
        the answers, those before a hang or a crash among them, and what went wrong (empty: nothing).
    """
    process = subprocess.Popen([sys.executable, "-m", MODULE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               errors="replace", start_new_session=True)
    try:
        out, errors = process.communicate(timeout=timeout)
        problem = "" if process.returncode == 0 else f"ended with code {process.returncode}: {_last(errors)}"
    except subprocess.TimeoutExpired:
        problem = f"no answer within {timeout:g} s"
        _kill(process)
        out, _ = process.communicate()
    finally:
        _kill(process)
    return [answer for line in out.splitlines() if (answer := _object(line)) is not None], problem


def _kill(process: subprocess.Popen[str]) -> None:
    """End the process and the ranks it started: they are one session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _last(text: str) -> str:
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return said[-1][:200] if said else "nothing said"
