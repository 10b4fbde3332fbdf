"""The `stagecraft` command: plan a run, examine the machine, serve, compare and talk to models, trace a token, look at the record."""

from __future__ import annotations

import argparse
import importlib
import sys

from stagecraft.contract.address import reach_loopback
from stagecraft.contract.errors import exit_on_user_error

# Subcommand -> what it does. Each is a module stagecraft.cli.<name> with `main(arguments) -> int | None`, imported when asked for.
COMMANDS = {
    "serve": "keep a model up on an OpenAI-compatible API: the promoted one, a directory, an alias, a revision",
    "compare": "checkpoints and endpoints side by side: accuracy and tokens per second, with intervals",
    "chat": "talk to the served model in the terminal",
    "lineage": "which document a trained-on token comes from, and what that passed",
    "doctor": "examine this machine before work: what it has, and whether it is fast enough",
    "plan": "what a profile needs and takes on a cluster: memory, layout, days, cost; tokens per second served",
    "ui": "a page with the report and a chat with the served model; MLflow beside it",
}


def main() -> None:
    """Entry point of the console script."""
    parser = argparse.ArgumentParser(prog="stagecraft", description=__doc__, add_help=True)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in COMMANDS.items():
        commands.add_parser(name, help=what, add_help=False)
    command = parser.parse_args(sys.argv[1:2]).command
    reach_loopback()
    exit_on_user_error(lambda: importlib.import_module(f"stagecraft.cli.{command}").main(sys.argv[2:]))


if __name__ == "__main__":
    main()
