"""Runs one worker process per model, a few at a time; what is finished stays finished, whatever happens to the rest.

They are forked from one that has imported vLLM, which takes longer than many a small model's evaluation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Lock
from typing import Any

from components.evaluate.params import Params
from components.evaluate.worker import run
from components.evaluate.workload import Workload
from stagecraft.contract.errors import EXIT_USER_ERROR, UserError
from stagecraft.contract.files import write_atomic
from stagecraft.contract.runlog import RunLog

LAST_LINES = 15
PRELOADED = ["stagecraft.inference.preloaded", *(f"components.evaluate.{name}" for name in ("worker", "engine_lm", "harness"))]


def run_all(models: dict[str, tuple[Path, str]], workload: Workload, params: Params, log: RunLog) -> dict[str, dict[str, Any]]:
    """Evaluate every model and return the workers' results by name.

    A result that `log.work` already holds is taken as it is: the runner hands out the same directory only for the same
    parameters, inputs and code.

    Args:
        models: name -> (checkpoint directory, artifact digest), those that take longest first.

    Raises:
        UserError: a worker found a mistake in its input.
        RuntimeError: a worker died; its last lines are in the message.
    """
    results = {name: log.work / f"{name}.json" for name in models}
    finished = [name for name in models if results[name].is_file()]
    if finished:
        log.note(f"already evaluated before the interruption: {', '.join(finished)}")
    amounts = {name: _amount(name, workload, params) for name in models}
    running: list[BaseProcess] = []
    lock = Lock()
    if len(finished) < len(models):
        _preload(params.threads)
    pool = ThreadPoolExecutor(params.processes)
    with log.bar("evaluate", sum(amounts.values()), unit="item", done=sum(amounts[name] for name in finished)) as bar:

        def advance(amount: int) -> None:
            with lock:
                bar.advance(amount)

        def work(name: str) -> None:
            path, digest = models[name]
            job = log.work / f"{name}.job.json"
            # Keys in their order, not sorted: that of a tool's arguments is part of the prompt.
            write_atomic(job, json.dumps({"name": name, "path": str(path.resolve()), "digest": digest,
                                          "result": str(results[name].resolve()), "params": asdict(params), **asdict(workload)}))
            _run(name, job, running, advance)

        try:
            for future in as_completed([pool.submit(work, name) for name in models if name not in finished]):
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.kill()  # a no-op for those that have ended
    return {name: json.loads(results[name].read_text()) for name in models}


def _preload(threads: int) -> None:
    """Start the process that workers are forked from; OpenMP reads its number of threads when it is loaded, there."""
    before = dict(os.environ)
    os.environ.update(OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1")
    try:
        get_context("forkserver").set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(name: str, job: Path, running: list[BaseProcess], advance: Callable[[int], None]) -> None:
    output, context = job.with_name(f"{name}.log"), get_context("forkserver")
    progress, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(job, output, theirs), name=name)  # no daemon: an engine may start processes
    process.start()
    running.append(process)
    theirs.close()
    with progress, suppress(EOFError):
        while True:
            advance(progress.recv())
    process.join()
    status = process.exitcode
    if status == 0:
        return
    lines = output.read_text(errors="replace").splitlines()
    if status == EXIT_USER_ERROR and lines and lines[-1].startswith("error: "):
        raise UserError(lines[-1].removeprefix("error: "))
    ended = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    raise RuntimeError("\n".join([f"the evaluation of {name} {ended}; its last lines:", *lines[-LAST_LINES:]]))


def _amount(name: str, workload: Workload, params: Params) -> int:
    sampled = min(params.pass_at_k.prompts, len(workload.rows)) * params.pass_at_k.samples if name in params.pass_at_k.models else 0
    return len(workload.rows) + len(workload.documents) + sampled + len(params.benchmarks.tasks)
