"""Runs the shards that have no result yet, with datatrove's executor."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor

from components.curate.params import Params
from components.curate.shards.plan import Shard, write_plan
from components.curate.shards.steps import Job, pipeline

_POLL = 0.5  # seconds between two looks at what is done


def run_shards(shards: Sequence[Shard], results: Path, params: Params, logs: Path, done: Callable[[int], None]) -> int:
    """Make the missing results; those of other plans are removed at the end.

    Args:
        results: directory of the results, kept between runs; evaluation.npz and classifier.npz lie there.
        logs: scratch directory for datatrove's own records.
        done: called with the number of shards that have a result, from time to time.

    Returns:
        number of shards that had to be run.
    """
    missing = [shard for shard in shards if not (results / shard.key).is_dir()]
    if missing:
        shutil.rmtree(logs, ignore_errors=True)
        for shard in missing:
            write_plan(results, shard)
        executor = LocalPipelineExecutor(
            pipeline(Job([shard.key for shard in missing], results, params)), tasks=len(missing), workers=min(params.workers, len(missing)),
            logging_dir=str(logs), skip_completed=False)
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(shards, results, done, ended))
        watcher.start()
        try:
            executor.run()
        finally:
            ended.set()
            watcher.join()
    wanted = {shard.key for shard in shards}
    for directory in results.iterdir():
        if directory.is_dir() and directory.name not in wanted:
            shutil.rmtree(directory)
    done(len(shards))
    return len(missing)


def _watch(shards: Sequence[Shard], results: Path, done: Callable[[int], None], ended: threading.Event) -> None:
    while not ended.wait(_POLL):
        done(sum((results / shard.key).is_dir() for shard in shards))
