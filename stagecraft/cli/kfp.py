"""The `kfp` command: `kfp run FILE.py` is ours, every other command is stock KFP's."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

# Options of the stock group that take a value and may stand before the command (kfp/cli/cli.py).
_VALUED = {"--endpoint", "--iap-client-id", "-n", "--namespace", "--other-client-id", "--other-client-secret", "--existing-token",
           "--output"}


def is_file_run(arguments: Sequence[str]) -> bool:
    """Whether this is `kfp [options] run FILE.py ...`, or asks for its help; `kfp run list` and the like are stock KFP's."""
    position = 0
    while position < len(arguments) and arguments[position].startswith("-"):
        position += 2 if arguments[position] in _VALUED else 1
    rest = list(arguments[position + 1 :])
    asks = rest in (["--help"], ["-h"])  # stock KFP would first look for a server
    return list(arguments[position : position + 1]) == ["run"] and (asks or any(argument.endswith(".py") for argument in rest))


def main() -> None:
    """Entry point of the console script, whichever distribution installed it."""
    arguments = sys.argv[1:]
    if is_file_run(arguments):
        from stagecraft.cli.run import main as run_file
        from stagecraft.contract.errors import exit_on_user_error

        exit_on_user_error(lambda: run_file(arguments))
    import click
    from kfp.cli import cli

    logging.basicConfig(format="%(message)s", level=logging.INFO)  # as in kfp/cli/__main__.py, which this replaces
    try:
        cli.cli(obj={}, auto_envvar_prefix="KFP")
    except Exception as error:
        click.echo(str(error), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
