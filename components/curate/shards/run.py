"""Runs the shards that have no result yet, with one of datatrove's executors: the same steps on one machine or many."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from components.curate.params import Params
from components.curate.shards import local
from components.curate.shards.plan import Shard, write_plan
from components.curate.shards.slurm import run_slurm
from components.curate.shards.steps import Job, pipeline
from stagecraft.contract import ray_cluster
from stagecraft.contract.errors import UserError

_POLL = 0.5  # seconds between two looks at what is done


def run_shards(shards: Sequence[Shard], results: Path, params: Params, logs: Path, done: Callable[[int], None]) -> int:
    """Make the missing results; those of other plans are removed at the end.

    Args:
        results: directory of the results, kept between runs; evaluation.npz and classifier.npz lie there.
        logs: scratch directory for datatrove's own records.
        done: called with the number of shards that have a result, from time to time.

    Returns:
        number of shards that had to be run.

    Raises:
        UserError: the executor asked for is not there, or left shards without a result.
    """
    results, logs = results.resolve(), logs.resolve()
    missing = [shard for shard in shards if not (results / shard.key).is_dir()]
    if missing:
        shutil.rmtree(logs, ignore_errors=True)
        for shard in missing:
            write_plan(results, shard)
        keys = [shard.key for shard in missing]
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(shards, results, done, ended))
        watcher.start()
        try:
            _execute(pipeline(Job(keys, results, params)), [results / key for key in keys], params, logs)
        finally:
            ended.set()
            watcher.join()
    wanted = {shard.key for shard in shards}
    for directory in results.iterdir():
        if directory.is_dir() and directory.name not in wanted:
            shutil.rmtree(directory)
    done(len(shards))
    return len(missing)


def _execute(steps: list[PipelineStep], wanted: Sequence[Path], params: Params, logs: Path) -> None:
    options = {"tasks": len(wanted), "workers": min(params.workers, len(wanted)), "logging_dir": str(logs), "skip_completed": False}
    if params.executor == "slurm":
        run_slurm(steps, wanted, options["workers"], params.slurm, logs)
    elif params.executor == "ray":
        ray_cluster.join("curate.executor", "local")
        RayPipelineExecutor(steps, **options).run()
    elif options["workers"] == 1:
        LocalPipelineExecutor(steps, **options).run()
    else:
        local.Executor(steps, **options).run()
    missing = sum(not path.is_dir() for path in wanted)
    if missing:
        raise UserError(f"{missing} of {len(wanted)} shards have no result", where=str(logs / "logs"),
                        mend="see the logs there, then run again: the others are kept")


def _watch(shards: Sequence[Shard], results: Path, done: Callable[[int], None], ended: threading.Event) -> None:
    while not ended.wait(_POLL):
        done(sum((results / shard.key).is_dir() for shard in shards))
