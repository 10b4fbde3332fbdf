"""`stagecraft compare A B [C ...]`: checkpoints and endpoints side by side, accuracy and tokens per second, with intervals."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import count, filterfalse
from pathlib import Path
from typing import Any

from stagecraft.cli.model import find
from stagecraft.cli.serve import settings
from stagecraft.contract.address import without_version
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import parse
from stagecraft.contract.registry import MODEL
from stagecraft.contract.runlog import RunLog
from stagecraft.contract.terminal import terminal_sink
from stagecraft.inference.server import ServerDiedError, check_checkpoint
from stagecraft.inference.server_settings import fitting

OUT = Path("comparison")
ARCHITECTURES = "architectures trained for the purpose are compared by python -m benchmarks.architectures"


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table and say where the report is.

    Returns:
        0, or 1 when a server died; its last lines are then on standard error.

    Raises:
        UserError: an unknown model, data that is not there, protocols that differ without --force.
    """
    chosen = _parser().parse_args(arguments)
    if len(chosen.models) < 2:
        raise UserError(f"{len(chosen.models)} given", where="stagecraft compare",
                        mend=f"name two or more to compare; {ARCHITECTURES}")
    # The measuring is the evaluate component's; the command line finds it by name, as the runner finds stages.
    side_by_side = importlib.import_module("components.evaluate.side_by_side")
    server = settings(chosen.draft_tokens)
    plan = parse(side_by_side.Plan, {
        "benchmarks": {"tasks": chosen.task or ["families"], "data": chosen.data, "prompts": chosen.prompts, "lengths": chosen.lengths,
                       "max_new_tokens": chosen.max_tokens},
        "server": asdict(server), "rounds": chosen.rounds, "concurrency": chosen.concurrency,
        "seed": chosen.seed, "confidence": chosen.confidence, "together": not chosen.one_at_a_time, "force": chosen.force,
    }, "stagecraft compare")
    plan = replace(plan, server=replace(server, max_num_seqs=plan.concurrency))
    subjects = _distinct([side_by_side.Subject(*_resolve(model)) for model in chosen.models])
    for subject in subjects:
        if isinstance(subject.where, Path):
            fitting(server, subject.where, asked=bool(chosen.draft_tokens))
    for directory in (chosen.out, chosen.out / "plots"):
        directory.mkdir(parents=True, exist_ok=True)
    log = RunLog("compare", chosen.out / "plots", chosen.out, [terminal_sink("compare")])
    try:
        comparison = side_by_side.run(subjects, plan, chosen.out, log)
    except ServerDiedError as error:
        print(error, file=sys.stderr)
        return 1
    for name, subject in comparison["subjects"].items():
        speed, accuracy = subject["tokens_per_second"], subject["accuracy"]["all prompts"]
        print(f"{name:<24} {100 * accuracy['value']:5.1f}% ± {100 * accuracy['stderr']:.1f}   {speed['value']:8.1f} tokens/s "
              f"({speed['interval'][0]:.1f} to {speed['interval'][1]:.1f})")
    if comparison["differing"]:
        print(f"compared by force: {', '.join(comparison['differing'])} differ")
    if comparison["untold"]:
        print(f"not told by an endpoint, so perhaps not the same: {', '.join(comparison['untold'])}")
    if (overlaps := comparison["contamination"]) is None:
        print("the prompts were not looked for in training text: no corpus is at hand")
    else:
        print("found in the training corpus: " + ", ".join(f"{task} {overlap['found']} of {overlap['texts']}"
                                                           for task, overlap in overlaps.items()))
    print(f"{chosen.out / 'report.html'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stagecraft compare", description=__doc__, epilog=f"{ARCHITECTURES}.")
    parser.add_argument("models", nargs="*", metavar="MODEL",
                        help="what `stagecraft serve` takes (a checkpoint directory, champion, REVISION:PATH), or the http address of an "
                             "OpenAI endpoint")
    parser.add_argument("--task", action="append", metavar="NAME",
                        help="a benchmark of components/evaluate/tasks, may be repeated (default: families, the held-out tasks)")
    parser.add_argument("--data", default="", metavar="DIR", help="folder with the data of the real benchmarks")
    parser.add_argument("--prompts", type=int, default=48, help="of each task; 0: all (default: 48)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[60, 120], metavar="WORDS", help="of made contexts (default: 60 120)")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer, and the length that speed is measured at (default: 64)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every model, at least 2 (default: 3)")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at a time, and sequences in a batch (default: 8)")
    parser.add_argument("--draft-tokens", type=int, metavar="N", help="by multi-token prediction (default: serve.server.draft_tokens)")
    parser.add_argument("--seed", type=int, default=0, help="of sampled answers and made prompts (default: 0)")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the intervals (default: 0.95)")
    parser.add_argument("--one-at-a-time", action="store_true",
                        help="serve each checkpoint for its turn alone: for models that fill the memory")
    parser.add_argument("--force", action="store_true", help="compare although the protocols differ; the report says where")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of comparison.json and report.html (default: {OUT})")
    return parser


def _resolve(model: str) -> tuple[str, Path | str, str | None]:
    """(name, directory or address, verified digest) of a model as it was given."""
    if model.startswith(("http://", "https://")):
        address = without_version(model)
        return address.partition("://")[2], address, None
    found = find(model)
    check_checkpoint(found.path)
    name = Path(model).resolve().name if Path(model).exists() else re.sub(r"[^\w.-]+", "-", model.removeprefix(f"models:/{MODEL}@"))
    return name, found.path, found.digest


def _distinct(subjects: list[Any]) -> list[Any]:
    """The subjects, numbered where a name occurs twice, by numbers that make no other's name."""
    names = [subject.name for subject in subjects]
    numbered = {name: filterfalse(names.__contains__, map(f"{name}-{{}}".format, count(1))) for name in names}
    return [replace(subject, name=next(numbered[subject.name])) if names.count(subject.name) > 1 else subject for subject in subjects]
