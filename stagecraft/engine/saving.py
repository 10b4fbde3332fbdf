"""Writes resumable checkpoints beside the training, which waits while its state is copied to host memory; a thread writes the copy.

The thread touches the copy and files alone. What takes all ranks, the plan before it and the metadata after it, is done between steps.
"""

from __future__ import annotations

import queue
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

from stagecraft.megatron_cpu import ON_CPU

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.exchange_utils import ShardDistribution
from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from torch import Tensor

from stagecraft.contract.errors import UserError
from stagecraft.contract.files import digest_of, sha256, write_json
from stagecraft.engine.replicas import divide_writing
from stagecraft.engine.together import together
from stagecraft.engine.trainer import Trainer

STATE = "trainer.json"

# megatron-core has one queue per process for what its writers found, behind a manager process that outlives a killed rank
# (dist_checkpointing/strategies/filesystem_async.py:53). Ours are threads, and of two saves at a time each would get the other's.
filesystem_async.get_write_results_queue = lambda mp_mode="spawn": queue.Queue()


@dataclass
class _Writing:
    """This rank's part of a checkpoint under way.

    Args:
        state: what the checkpoint says besides tensors.
        request: megatron-core's functions: one writes, the others are called by all ranks once all have written.
    """

    directory: Path
    state: dict[str, Any]
    request: AsyncRequest
    digests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.thread = Thread(target=self._write, name="checkpoint")

    def _write(self) -> None:
        if self.request.async_fn:
            self.request.async_fn(*self.request.async_fn_args)
        self.digests = {path.name: sha256(path) for path in self.directory.glob(f"__{dist.get_rank()}_*")}

    def complete(self) -> dict[str, str]:
        """Write, with all ranks, what describes the parts; returns SHA-256 of the files that this rank wrote.

        Raises:
            CheckpointException: a part could not be written.
        """
        self.thread.join()
        for function in self.request.finalize_fns:
            function()
        return self.digests


class Saver:
    """Checkpoints below `directory` as `step-N`; all but the newest `keep` are removed when a newer one is whole, not before.

    Every rank calls every method after the same steps. One checkpoint is under way at a time; the copy of this rank's weights and
    moments has its memory for good, pinned where they lie on a GPU.
    """

    def __init__(self, directory: Path, keep: int = 2):
        self.directory, self.keep = directory, keep
        self._copies: dict[tuple, Tensor] = {}
        self._division: ShardDistribution | None = None
        self._writing: _Writing | None = None

    def save(self, trainer: Trainer, extra: dict[str, Any] | None = None) -> None:
        """Begin to save model, optimizer and schedule as they are now; the checkpoint before must be complete, or is waited for.

        Raises:
            UserError: one of the two cannot be written, as on a full disk; what was there is untouched.
        """
        self.finish()
        state = {"step": trainer.steps_done, "updates": trainer.updates, "scheduler": trainer.scheduler.state_dict(), "extra": extra or {}}
        temporary = self.directory / f".step-{trainer.steps_done:08d}.tmp"

        def begin() -> None:
            for unfinished in self.directory.glob(".step-*.tmp"):
                shutil.rmtree(unfinished)
            temporary.mkdir(parents=True)

        def plan() -> None:
            request = dist_checkpointing.save(self._copy(trainer), temporary, async_sharded_save=True, async_strategy="mcore")
            self._writing = _Writing(temporary, state, request)

        try:
            together(begin if dist.get_rank() == 0 else None)
            together(plan)
        except OSError as error:
            self._fail(temporary, error)
        self._writing.thread.start()

    def poll(self) -> None:
        """Complete the checkpoint under way, if there is one and all ranks have written their parts.

        Raises:
            UserError: as `save`.
        """
        if self._writing:
            written = torch.tensor(int(not self._writing.thread.is_alive()), device=torch.cuda.current_device())
            dist.all_reduce(written, dist.ReduceOp.MIN)
            if written:
                self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint under way, if there is one, and complete it.

        Raises:
            UserError: as `save`.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        temporary = writing.directory

        def publish() -> None:
            write_state(temporary, writing.state, parts)
            final = temporary.with_name(temporary.stem.removeprefix("."))
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            for old in sorted(self.directory.glob("step-*"))[:-self.keep]:
                shutil.rmtree(old, ignore_errors=True)

        try:
            parts = together(writing.complete)
            together(publish if dist.get_rank() == 0 else None)
        except OSError as error:
            self._fail(temporary, error)

    def _fail(self, temporary: Path, error: OSError) -> None:
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(next(path for path in (self.directory, *self.directory.absolute().parents) if path.exists())).free / 1e9
        older = max((path.name for path in self.directory.glob("step-*")), default="the beginning")
        step = int(temporary.stem.rpartition("-")[2])
        raise UserError(f"checkpoint of step {step} cannot be written ({free:.1f} GB are free there): {error}",
                        where=str(self.directory), mend=f"make room and start again: it goes on from {older}") from error

    @torch.no_grad()  # or each copy would have one more node of a graph with every save
    def _copy(self, trainer: Trainer) -> dict[str, Any]:
        """The state to save, with copies in host memory of the tensors that this rank writes."""
        state = sharded(trainer)
        self._division = divide_writing(state, self._division)
        for shard in nested_values(state):
            if isinstance(shard, ShardedTensor) and is_main_replica(shard.replica_id):
                place = (shard.key, shard.global_offset)
                if place not in self._copies:
                    self._copies[place] = torch.empty(shard.local_shape, dtype=shard.dtype, device="cpu", pin_memory=not ON_CPU)
                shard.data = self._copies[place].copy_(shard.data, non_blocking=True)
        torch.cuda.synchronize()
        return state


def write_state(directory: Path, state: dict[str, Any], parts: list[dict[str, str]]) -> None:
    """Write `state` beside the files that all ranks wrote, with SHA-256 of each (`parts`: those that the ranks know) and of itself."""
    digests = {name: digest for part in parts for name, digest in part.items()}
    digests |= {path.name: sha256(path) for path in directory.iterdir() if path.name not in digests}
    whole = {**state, "sha256": digests}
    write_json(directory / STATE, {**whole, "digest": digest_of(whole)})


def sharded(trainer: Trainer) -> dict[str, Any]:
    """Weights and moments by the names and places of the weights.

    megatron-core's own `optimizer.sharded_state_dict` names them by the optimizer they are in, which depends on the layout: with
    tensor or expert parallelism the experts have one of their own.
    """
    model = trainer.module.sharded_state_dict(prefix="")
    moments = {name: {moment: make_sharded_optimizer_tensor(model[name], tensor, f"optimizer.{moment}")
                      for moment, tensor in moments.items()} for name, moments in trainer.moments().items()}
    if trainer.shards_moments:  # of the data-parallel ranks the one that has them writes them
        for shard in (shard for own in moments.values() for shard in own.values()):
            shard.replica_id = (*shard.replica_id[:2], 0)
    return {"model": model, "optimizer": moments}
