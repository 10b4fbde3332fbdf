"""What a check says: ok, skipped, a warning or a failure, with what was found, what was expected and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "skip", "warn", "fail"]

_GRAVITY: tuple[Status, ...] = ("ok", "warn", "fail")


@dataclass(frozen=True)
class Check:
    """One verdict.

    Args:
        name: `group.what`, unique in a report.
        found: what the machine says; for a skipped check why it was skipped.
        expected: what was asked for, empty if nothing is.
        mend: what to do about a warning or a failure.
    """

    name: str
    status: Status
    found: str
    expected: str = ""
    mend: str = ""


def verdict(checks: Iterable[Check]) -> Status:
    """The gravest status; what was skipped says nothing."""
    return max((check.status for check in checks if check.status != "skip"), key=_GRAVITY.index, default="ok")


def attempt(name: str, checks: Callable[[], list[Check]]) -> list[Check]:
    """The checks, or one failure under `name` if they raise: a sick machine must not silence the doctor."""
    try:
        return checks()
    except Exception as error:
        return [Check(name, "fail", f"this check itself failed: {type(error).__name__}: {error}",
                      mend="report it with the output of `stagecraft doctor --json`")]
