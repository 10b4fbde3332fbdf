"""The parts of a distributed checkpoint, one of each rank. megatron-core plans and writes them; what describes them is written here.

Its own functions for that have rank 0 write amid collectives: where it failed, the others would wait for it. And of what a rank's writing
met they leave but a type.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

from stagecraft.contract.files import digest_of, sha256, write_json
from stagecraft.engine.together import together

STATE = "trainer.json"

# megatron-core has one queue per process for what its writers found, behind a manager process that outlives a killed rank
# (dist_checkpointing/strategies/filesystem_async.py:53). Here nothing goes through it.
filesystem_async.get_write_results_queue = lambda mp_mode="spawn": None


class _Plan(TorchDistSaveShardedStrategy):
    """Keeps what was planned, in place of the functions that would carry it out."""

    def _get_save_and_finalize_callbacks(self, writer: Any, planned: tuple, async_strategy: str) -> AsyncRequest:
        self.writer, self.metadata, self.ranks = planned
        return AsyncRequest(None, (), [])


class Part:
    """This rank's part of a checkpoint that is made in `directory`: all ranks plan, each writes, all complete."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._plan, self._results, self._digests = _Plan(), [], {}
        self._failure: Exception | None = None

    def plan(self, state: dict[str, Any]) -> None:
        """Divide the sharded tensors of `state` into files, with all ranks."""
        dist_checkpointing.save(state, self.directory, self._plan, async_sharded_save=True, async_strategy="mcore")

    def write(self) -> None:
        """Write this rank's file, in whatever thread; what that meets is raised by `complete`."""
        try:
            self._write()
        except Exception as error:
            self._failure = error

    def complete(self, state: dict[str, Any], final: Path) -> None:
        """Write, with all ranks, what describes the parts, and `state` beside them; the directory is then named `final`.

        Raises:
            OSError: that failed, or the writing of a part.
        """
        digests = together(self._written)
        results = self._plan.ranks.gather_object(self._results)

        def describe() -> None:
            self._plan.writer.finish(self._plan.metadata, results)
            save_config(CheckpointingConfig(self._plan.backend, self._plan.version), self.directory)
            _write_state(self.directory, state, digests)
            shutil.rmtree(final, ignore_errors=True)
            self.directory.rename(final)

        together(describe if dist.get_rank() == 0 else None)

    def _write(self) -> None:
        writer = self._plan.writer
        for bucket in writer.preload_tensors(writer.write_buckets, non_blocking=False):
            _, results = writer.write_preloaded_data([writer.transforms], 0, bucket, None, None, use_fsync=True)
            if isinstance(results, Exception):  # torch.save, as it ends a file that could not be written, meets an error of its own
                raise results from results.__context__
            self._results += results
        self._digests = {path.name: sha256(path) for path in self.directory.glob(f"__{dist.get_rank()}_*")}

    def _written(self) -> dict[str, str]:
        if self._failure:
            raise self._failure
        return self._digests


def _write_state(directory: Path, state: dict[str, Any], parts: list[dict[str, str]]) -> None:
    """Write `state` beside the files that all ranks wrote, with SHA-256 of each (`parts`: those that the ranks know) and of itself."""
    digests = {name: digest for part in parts for name, digest in part.items()}
    digests |= {path.name: sha256(path) for path in directory.iterdir() if path.name not in digests}
    whole = {**state, "sha256": digests}
    write_json(directory / STATE, {**whole, "digest": digest_of(whole)})
