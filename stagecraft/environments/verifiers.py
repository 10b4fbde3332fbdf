"""The verifiers, by the `kind` a task row names: each judges the answer that follows the thinking."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from stagecraft.contract.errors import UserError
from stagecraft.environments.written import lone_call

Verifier = Callable[[dict[str, Any], str], dict[str, float]]


def verify_text(spec: dict[str, Any], answer: str) -> dict[str, float]:
    """The answer is `spec["answer"]`, letter for letter, runs of white space counted as one space."""
    given = " ".join(answer.split())
    return {"format": float(bool(given)), "correct": float(given == " ".join(spec["answer"].split()))}


def verify_number(spec: dict[str, Any], answer: str) -> dict[str, float]:
    """The answer is a plain decimal integer, and it is `spec["answer"]`. Leading zeros are malformed, as is -0.

    So a number is written in one way only, and texts are compared: Python reads no integer of more than 4300 digits.
    """
    given = answer.strip()
    well_formed = re.fullmatch(r"0|-?[1-9][0-9]*", given) is not None
    return {"format": float(well_formed), "correct": float(well_formed and given == str(spec["answer"]))}


def verify_tool_call(spec: dict[str, Any], answer: str) -> dict[str, float]:
    """The answer is one tool call, as `read_calls` reads it, and nothing else.

    Arguments are compared as JSON values (1 is neither "1" nor true).
    """
    failed = {"format": 0.0, "name": 0.0, "arguments": 0.0, "correct": 0.0}
    call = lone_call(answer)
    if call is None:
        return failed
    name = float(call["name"] == spec["name"])
    arguments = float(_canonical(call["arguments"]) == _canonical(spec["arguments"]))
    return {"format": 1.0, "name": name, "arguments": arguments, "correct": name * arguments}


VERIFIERS: dict[str, Verifier] = {"text": verify_text, "number": verify_number, "tool_call": verify_tool_call}


def verifier_of(row: dict[str, Any]) -> Verifier:
    """The verifier a task row names.

    Raises:
        UserError: the row names none, or one that does not exist.
    """
    kind = row.get("verifier", {}).get("kind")
    if kind not in VERIFIERS:
        raise UserError(f"unknown verifier {kind!r}", where=f"task row {row.get('id', '?')}", mend=f"use one of {', '.join(VERIFIERS)}")
    return VERIFIERS[kind]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
