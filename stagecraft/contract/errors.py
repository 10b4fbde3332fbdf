"""Errors a user can mend: one line that says what, where and how; the process ends with exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

EXIT_USER_ERROR = 2


class UserError(Exception):
    """A mistake in the input, not in the program.

    Args:
        what: what is wrong, with the offending value.
        where: the file, key or address it was found in.
        mend: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", mend: str = ""):
        self.what, self.where, self.mend = what, where, mend
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return " ".join((f"{text} - {self.mend}" if self.mend else text).split())


def exit_on_user_error(main: Callable[[], int | None]) -> None:
    """Run `main` as a program: a `UserError` becomes one line on stderr and exit code 2."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
