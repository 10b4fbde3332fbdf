"""`stagecraft doctor`: examine this machine before work, against what its kind should have; exit code 1 if a check fails."""

from __future__ import annotations

import argparse
import json
import shlex
import socket
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stagecraft.contract.environment import describe_environment
from stagecraft.contract.errors import UserError
from stagecraft.doctor.examine import AUTO, choose, examine
from stagecraft.doctor.node import Node, names, share
from stagecraft.doctor.verdict import Check, verdict

SCHEMA = 1
_COLOURS = {"ok": "green", "skip": "dim", "warn": "yellow", "fail": "bold red"}


def main(arguments: Sequence[str]) -> int:
    """Examine the machine and report.

    Returns:
        0 if nothing failed, 1 if a check failed.

    Raises:
        UserError: there is no such profile, it has fewer GPUs, or the directory to work in does not exist.
    """
    chosen = parser().parse_args(arguments)
    name, node = choose(chosen.profile)
    if chosen.gpus is not None:
        node = share(node, chosen.gpus)
    if chosen.env:
        print(environment(name, node, chosen.env), end="")
        return 0
    if not chosen.work.is_dir():
        raise UserError("no such directory", where=f"--work {chosen.work}", mend="make it, or name another")

    console = Console(highlight=False)
    waiting = Console(stderr=True)
    started = time.monotonic()
    # Without a terminal there is nobody to wait.
    with waiting.status(f"examining this machine as {node.title} ...") if waiting.is_terminal else nullcontext():
        checks = examine(name, node, chosen.work.resolve(), quick=chosen.quick)
    seconds = time.monotonic() - started
    if chosen.json:
        print(json.dumps(report(name, node, checks, seconds), indent=2))
    else:
        show(console, name, node, checks, seconds)
    return int(verdict(checks) == "fail")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="stagecraft doctor", description=__doc__)
    made.add_argument("--profile", default=AUTO, metavar="KIND",
                      help=f"what the machine should be: {AUTO} (by its GPUs), {', '.join(names())}")
    made.add_argument("--gpus", type=int, metavar="N",
                      help="expect this many of the node's GPUs and their share of the rest (default: all)")
    made.add_argument("--quick", action="store_true", help="only look, measure no speed")
    made.add_argument("--work", type=Path, default=Path(), metavar="DIR", help="where the work will lie (default: here)")
    output = made.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print the report as JSON")
    output.add_argument("--env", nargs="?", const="export", choices=("export", "file"),
                        help="examine nothing; print the environment of the profile, to be sourced or as an env file")
    return made


def report(name: str, node: Node, checks: list[Check], seconds: float) -> dict[str, object]:
    """The report as docs/doctor.md describes it."""
    return {
        "schema": SCHEMA, "verdict": verdict(checks), "profile": name, "title": node.title, "host": socket.gethostname(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "seconds": round(seconds, 2),
        "checks": [asdict(check) for check in checks], "environment": describe_environment(),
        "choices": [asdict(choice) for choice in node.choices],
    }


def environment(name: str, node: Node, form: str) -> str:
    """The profile's environment: `export` lines, or an env file as containers read it; the reason and source above each line."""
    lines = [f"# {node.title}, as `stagecraft doctor --profile {name} --env {form}` prints it"]
    for line in node.environment:
        lines.append(f"# {line.reason} ({line.source})")
        lines.append(f"export {line.name}={shlex.quote(line.value)}" if form == "export" else f"{line.name}={line.value}")
    return "\n".join(lines) + "\n"


def show(console: Console, name: str, node: Node, checks: list[Check], seconds: float) -> None:
    """A table on a terminal, plain lines otherwise; then what to mend."""
    if console.is_terminal:
        table = Table(show_edge=False, pad_edge=False, header_style="bold")
        for column in ("check", "", "found", "expected"):
            table.add_column(column, overflow="fold")
        for check in checks:
            table.add_row(check.name, f"[{_COLOURS[check.status]}]{check.status}[/]", escape(check.found), escape(check.expected))
        console.print(table)
    else:
        for check in checks:
            expected = f" ({check.expected})" if check.expected else ""
            print(f"{check.status:<4}  {check.name:<24}  {check.found}{expected}")
    for check in checks:
        if check.mend:
            console.print(f"{check.name}: {check.mend}", style=_COLOURS[check.status], markup=False, soft_wrap=True)
    counts = [f"{sum(check.status == status for check in checks)} {word}"
              for status, word in (("ok", "ok"), ("warn", "warnings"), ("fail", "failed"), ("skip", "skipped"))]
    console.print(f"{verdict(checks)}: {', '.join(counts)}; examined as {name} ({node.title}) in {seconds:.1f} s", markup=False,
                  style=_COLOURS[verdict(checks)], soft_wrap=True)
