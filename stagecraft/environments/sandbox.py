"""Judges a program by what it does: our templates' code here, a model's code in the sandbox or not at all.

`run_confined` lets assertions speak, which a program that sets out to look correct can sit beside; `call_confined` only asks for values,
and the expected ones never enter the sandbox.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from stagecraft.environments.confinement import Limits, Outcome, confine

_SECONDS = 5
_ASSERT = """\
names = {"__name__": "program"}
import sys
say = sys.stdout.write
exec(given["code"], names)
for each in given["asserts"]:
    exec(each, names)
say("\\n" + given["word"])
"""
_CALL = """\
import importlib, json, sys
say, call = sys.stdout.write, getattr(importlib.import_module(given["module"]), given["function"])
for arguments in given["calls"]:
    try:
        value = {"value": call(*arguments)}
        line = json.dumps(value)
    except Exception as error:
        line = json.dumps({"raised": type(error).__name__})
    say("\\n" + given["word"] + line + "\\n")  # between two breaks, for the program may print as well
"""


def run_here(code: str, asserts: list[str]) -> str | None:
    """Execute trusted code and its assertions in this process; the reason if one fails."""
    names: dict[str, object] = {"__name__": "program"}
    try:
        exec(compile("\n".join([code, *asserts]), "program", "exec"), names)
    except AssertionError:
        return "assertion_failed"
    except Exception:
        return "program_failed"
    return None


def run_confined(code: str, asserts: list[str]) -> str | None:
    """Execute code and its assertions in the sandbox; the reason if it fails, or if there is no sandbox."""
    word = secrets.token_hex(8)  # written at the end, so that an early exit is no success
    done = confine(_ASSERT, {"code": code, "asserts": asserts, "word": word}, limits=_limits())
    if reason := _reason(done):
        return reason
    if done.status == 0 and done.out.endswith("\n" + word):
        return None
    return "assertion_failed" if "\nAssertionError" in done.error else "program_failed"


def call_confined(files: Mapping[str, str], module: str, function: str, calls: Sequence[Sequence[Any]]) -> tuple[list[Any], str | None]:
    """Call a function of a module among `files` in the sandbox, once for each list of arguments.

    Returns:
        (what each call gave: {"value": ...} as JSON has it, {"raised": name of the exception}, or None if it never answered;
        the reason if the program could not be run to its end).
    """
    word = secrets.token_hex(8)
    done = confine(_CALL, {"module": module, "function": function, "calls": list(calls), "word": word}, files, _limits())
    answers = [_answer(line.removeprefix(word)) for line in done.out.split("\n") if line.startswith(word)][:len(calls)]
    reason = _reason(done) or (None if done.status == 0 else "program_failed")
    return answers + [None] * (len(calls) - len(answers)), reason


def _answer(line: str) -> dict[str, Any] | None:
    """What a call gave; None of a line that is cut at the limit of the output, or that the program wrote itself in another shape."""
    try:
        match json.loads(line):
            case {"value": value, **others} if not others:
                return {"value": value}
            case {"raised": str(name), **others} if not others and name.isidentifier():
                return {"raised": name}
    except (ValueError, RecursionError):
        pass
    return None


def _limits() -> Limits:
    return Limits(cpu_seconds=_SECONDS, wall_seconds=2.0 * _SECONDS)


def _reason(done: Outcome) -> str | None:
    if done.refused:
        return "no_sandbox"
    return "program_too_slow" if done.too_slow else None
