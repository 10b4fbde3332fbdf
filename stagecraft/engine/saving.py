"""Writes resumable checkpoints beside the training, which waits while its state is copied to host memory; a thread writes the copy.

The thread touches the copy and files alone. What takes all ranks, the plan before it and the metadata after it, is done between steps.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from stagecraft.megatron_cpu import ON_CPU

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.exchange_utils import ShardDistribution
from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from torch import Tensor

from stagecraft.contract.errors import UserError
from stagecraft.engine.parts import Part
from stagecraft.engine.replicas import divide_writing
from stagecraft.engine.together import mend_of, together
from stagecraft.engine.trainer import Trainer


class _Writing(NamedTuple):
    """A checkpoint under way, with what it says besides tensors."""

    part: Part
    state: dict[str, Any]
    thread: Thread


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

        part, copies = Part(temporary), {}
        try:
            together(begin if dist.get_rank() == 0 else None)
            together(lambda: copies.update(self._copy(trainer)))  # before the ranks plan, in which they would wait for one without memory
            together(lambda: part.plan(copies))
        except OSError as error:
            self._fail(temporary, error)
        self._writing = _Writing(part, state, Thread(target=part.write, name="checkpoint"))
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
        (part, state, thread), self._writing = self._writing, None
        temporary = part.directory

        def remove_old() -> None:
            for old in sorted(self.directory.glob("step-*"))[:-self.keep]:
                shutil.rmtree(old, ignore_errors=True)

        thread.join()
        try:
            part.complete(state, temporary.with_name(temporary.stem.removeprefix(".")))
            together(remove_old if dist.get_rank() == 0 else None)
        except OSError as error:
            self._fail(temporary, error)

    def _fail(self, temporary: Path, error: OSError) -> None:
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(next(path for path in (self.directory, *self.directory.absolute().parents) if path.exists())).free / 1e9
        older = max((path.name for path in self.directory.glob("step-*")), default="the beginning")
        step = int(temporary.stem.rpartition("-")[2])
        raise UserError(f"checkpoint of step {step} cannot be written ({free:.1f} GB are free there): {error}",
                        where=str(self.directory), mend=f"{mend_of(error)}: it goes on from {older}") from error

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
