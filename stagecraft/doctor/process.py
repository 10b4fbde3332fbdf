"""Asks `python -m stagecraft.doctor.measure` in a process of its own: a sick device hangs or kills whoever touches it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any, TextIO

MODULE = "stagecraft.doctor.measure"
_DEATH = 5  # seconds that a killed process is waited for


def lines(*arguments: str, timeout: float) -> tuple[list[dict[str, Any]], str]:
    """Run the measurements and collect what they print, one JSON object a line.

    Returns:
        the answers, those before a hang or a crash among them, and what went wrong (empty: nothing).
    """
    # Files, not pipes: what hangs inside the driver cannot be killed and would keep a pipe open for ever.
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen([sys.executable, "-m", MODULE, *arguments], stdout=out, stderr=errors, start_new_session=True)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            problem = f"no answer within {timeout:g} s"
        else:
            problem = "" if process.returncode == 0 else f"ended with code {process.returncode}: {_last(_text(errors))}"
        finally:
            _kill(process)
        return [answer for line in _text(out).splitlines() if (answer := _object(line)) is not None], problem


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and the ranks it started: they are one session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_DEATH)


def _text(file: TextIO) -> str:
    file.seek(0)
    return file.read()


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _last(text: str) -> str:
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return said[-1][:200] if said else "nothing said"
