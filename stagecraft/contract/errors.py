"""Errors a user can mend: one line that says what, where and how; the process ends with exit code 2."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable

EXIT_USER_ERROR = 2
_EXIT_UNREAD = 141  # 128 and SIGPIPE's number
EXIT_INTERRUPTED = 130  # 128 and SIGINT's number, as a shell has it

# What the machine refuses a program that has no defect -> what to do about it.
_REFUSALS = {
    errno.EROFS: "work in a directory that can be written to", errno.EACCES: "grant access, or work in another directory",
    errno.ENOSPC: "make room and start again", errno.EDQUOT: "make room and start again",
    errno.EEXIST: "move away what is there, or name another place", errno.ENOTDIR: "move away what is there, or name another place",
    errno.EADDRINUSE: "choose another port, or end what uses it",
}


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


def exit_on_user_error(main: Callable[[], int | None], interrupted: str = "interrupted") -> None:
    """Run `main` as a program: a `UserError`, or what the machine refuses, becomes one line on stderr and exit code 2.

    Ctrl-C becomes one line too, `interrupted`, and exit code 130. A reader of its output that goes away ends it without a word.
    """
    try:
        sys.exit(main())
    except UserError as error:
        _say_and_exit(f"error: {error}", EXIT_USER_ERROR)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(_EXIT_UNREAD)
        if error.errno not in _REFUSALS:
            raise
        refused = UserError(error.strerror or str(error), where=str(error.filename or ""), mend=_REFUSALS[error.errno])
        _say_and_exit(f"error: {refused}", EXIT_USER_ERROR)
    except KeyboardInterrupt:
        _say_and_exit(interrupted, EXIT_INTERRUPTED)


def _nobody_reads() -> bool:
    """Whether standard output is a pipe that was closed, as `head` does; what is left for it goes nowhere then."""
    try:
        stdout = sys.stdout.fileno()
    except OSError:  # not a file
        return False
    poll = select.poll()
    poll.register(stdout, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True


def _say_and_exit(line: str, status: int) -> None:
    print(line, file=sys.stderr, flush=True)
    sys.exit(status)
