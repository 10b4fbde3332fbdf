"""Measures every subject in turn, round after round, and writes the comparison down."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from components.evaluate import benchmarks, contamination, harness
from components.evaluate.protocol import differing, require_same
from components.evaluate.side_by_side import report
from components.evaluate.side_by_side.endpoint import Endpoint
from components.evaluate.side_by_side.figures import Measured, summarise
from components.evaluate.side_by_side.plan import Plan
from components.evaluate.side_by_side.subjects import UNTOLD, Subject, served_name
from stagecraft.contract import manifest
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import digest_of, write_atomic, write_json
from stagecraft.contract.runlog import Bar, RunLog
from stagecraft.contract.stages import PATHS


def run(subjects: Sequence[Subject], plan: Plan, out: Path, log: RunLog) -> dict[str, Any]:
    """Compare, and write `comparison.json` and `report.html` into `out`.

    Within a round every subject answers the same prompts, then writes answers of one length to them, for its speed; the order of
    the subjects moves on by one from round to round, so that none is always the first on a cold machine. Before the rounds each
    subject answers once untimed. Whether endpoints answer at the length asked for shows only then: protocols that come to differ by it
    are refused before the rounds, or, if it shows in the rounds alone, once each subject's figures have been written.

    Returns:
        the content of comparison.json.

    Raises:
        UserError: a checkpoint cannot be served, an endpoint does not answer, the protocols differ and `force` is off, data is missing.
        ServerDiedError: a server ended while it was needed.
    """
    for subject in subjects:
        if isinstance(subject.where, str):
            served_name(subject.where)
    names, not_run = benchmarks.divide(plan.benchmarks.tasks)
    for name, reason in not_run.items():
        log.note(f"{name} is not run: {reason}")
    if not names:
        raise UserError(f"none of the tasks can run here: {', '.join(not_run)}", where="compare", mend=next(iter(not_run.values())))
    plan = replace(plan, benchmarks=replace(plan.benchmarks, tasks=names))
    tasks = _tasks(plan, 0)
    prompts = sum(len(task.eval_docs) for task in tasks.values())
    conditions = {subject.name: _protocol(subject, plan, tasks) for subject in subjects}
    if not plan.force:
        _require_same(conditions)
    overlaps = _contamination(tasks)
    measured = {subject.name: Measured(subject.model, conditions[subject.name], [], [], []) for subject in subjects}
    with log.bar("compare", 2 * prompts * plan.rounds * len(subjects), unit="answer") as bar, ExitStack() as stack:
        standing = {}
        if plan.together:
            for subject in subjects:
                log.note(f"starting {subject.name}")
                standing[subject.name] = stack.enter_context(subject.up(plan, out / "logs" / f"{subject.name}.log"))
                conditions[subject.name]["answers_timed"] = _timed(_warm(standing[subject.name], plan), plan)
            if not plan.force:
                _require_same(conditions)
        for turn in range(plan.rounds):
            for offset in range(len(subjects)):
                subject = subjects[(turn + offset) % len(subjects)]
                up = standing.get(subject.name)
                with nullcontext(up) if up else subject.up(plan, out / "logs" / f"{subject.name}.log") as address:
                    if not up:
                        _warm(address, plan)
                    _measure(measured[subject.name], address, plan, turn, bar)
    for each in measured.values():
        wanted = each.asked * plan.benchmarks.max_new_tokens
        each.protocol["answers_timed"] = _timed(all(tokens == wanted for tokens in each.tokens), plan)
    fields = _differing(conditions)
    comparison = {**summarise(measured, plan.confidence), "plan": asdict(plan), "not_run": not_run, "differing": fields,
                  "untold": _untold(conditions), "contamination": overlaps}
    if fields and not plan.force:
        comparison["pairs"] = []
    write_json(out / "comparison.json", comparison)
    write_atomic(out / "report.html", report.render(comparison, log))
    if not plan.force:
        _require_same(conditions, f"; the figures of each are in {out / 'report.html'}, and no comparison")
    return comparison


def _contamination(tasks: dict[str, benchmarks.Benchmark]) -> dict[str, dict[str, Any]] | None:
    """What of each task stands in the corpus of this tree; None if there is none. What endpoints were trained on nobody knows."""
    if not (PATHS["corpus"] / manifest.NAME).is_file():
        return None
    overlaps = contamination.check(PATHS["corpus"], {name: harness.prompts(task) for name, task in tasks.items()})
    return {name: asdict(overlap) for name, overlap in overlaps.items()}


def _tasks(plan: Plan, turn: int) -> dict[str, benchmarks.Benchmark]:
    return {name: benchmarks.load(name, plan.benchmarks, plan.seed, turn) for name in plan.benchmarks.tasks}


def _protocol(subject: Subject, plan: Plan, tasks: dict[str, benchmarks.Benchmark]) -> dict[str, Any]:
    return {**subject.conditions(plan), "harness": harness.HARNESS, "api": "chat completions; the template is the server's",
            "tasks": {name: digest_of(benchmarks.describe(task)) for name, task in tasks.items()},
            "top_p": "1 unless a task says otherwise", "max_new_tokens": plan.benchmarks.max_new_tokens, "concurrency": plan.concurrency,
            "rounds": plan.rounds, "seed": plan.seed}


def _require_same(protocols: dict[str, dict[str, Any]], besides: str = "") -> None:
    """Refuse protocols of which any differs from the first; `besides` is said too."""
    (first, reference), *others = protocols.items()
    for name, protocol in others:
        try:
            require_same(reference, protocol, (first, name))
        except UserError as error:
            raise UserError(error.what + besides, where="compare",
                            mend="serve both in the same way, or compare all the same with --force") from None


def _differing(protocols: dict[str, dict[str, Any]]) -> list[str]:
    """Fields in which any protocol differs from the first."""
    reference, *others = protocols.values()
    return list(dict.fromkeys(field for protocol in others for field in differing(reference, protocol)))


def _untold(protocols: dict[str, dict[str, Any]]) -> list[str]:
    """Fields that an endpoint does not tell: of them nobody knows whether they differ."""
    return list(dict.fromkeys(field for protocol in protocols.values() for field, value in protocol.items() if value == UNTOLD))


def _warm(address: str, plan: Plan) -> bool:
    """A batch of answers that nobody times; whether each had the length asked for."""
    limit = plan.benchmarks.max_new_tokens
    endpoint = Endpoint(address, served_name(address), concurrency=plan.concurrency, max_tokens=limit)
    task = benchmarks.load(plan.benchmarks.tasks[0], plan.benchmarks, plan.seed)
    task.build_all_requests(limit=plan.concurrency, apply_chat_template=True, fewshot_as_multiturn=True,
                            chat_template=endpoint.apply_chat_template)
    tokens, _ = endpoint.write([instance.args[0] for instance in task.instances], limit)
    return tokens == len(task.instances) * limit


def _timed(exactly: bool, plan: Plan) -> str:
    return f"exactly {plan.benchmarks.max_new_tokens} tokens" if exactly else "as long as they come"


def _measure(measured: Measured, address: str, plan: Plan, turn: int, bar: Bar) -> None:
    """One turn of one subject."""
    limit = plan.benchmarks.max_new_tokens
    tasks = _tasks(plan, turn)
    endpoint = Endpoint(address, served_name(address), concurrency=plan.concurrency, max_tokens=limit)
    endpoint.progress = bar.advance
    measured.answers.append(harness.run(endpoint, tasks))
    prompts = [instance.args[0] for task in tasks.values() for instance in task.instances]
    tokens, seconds = endpoint.write(prompts, limit)
    measured.asked = len(prompts)
    measured.tokens.append(tokens)
    measured.seconds.append(seconds)
