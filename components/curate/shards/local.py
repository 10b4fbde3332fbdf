"""Runs shards in processes of this machine, by datatrove's executor, and says so where one is killed."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from threading import Thread

from datatrove.executor import LocalPipelineExecutor

from stagecraft.contract.errors import UserError


class Executor(LocalPipelineExecutor):
    """datatrove's, but for its pool: that waits for ever for the shard of a worker that was killed."""

    def run(self) -> None:
        """Work through all tasks.

        Raises:
            UserError: a worker was killed.
        """
        with ProcessPoolExecutor(self.workers, get_context("forkserver"), _begin) as pool:
            try:
                for _ in pool.map(self._run_for_rank, range(self.tasks)):
                    pass
            except BrokenProcessPool:
                raise UserError("a worker was killed, most often because memory ran out", where="curate.workers",
                                mend="take fewer, or give more memory, then run again: the shards that are done are kept") from None
            except BaseException:
                for worker in active_children():  # else the pool waits until they are through with their shards
                    worker.terminate()
                raise


def _begin() -> None:
    """An interrupt, which a terminal sends to all, is the parent's to hear; a worker ends with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
