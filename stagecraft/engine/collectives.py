"""Collectives of Python objects, over gloo: what rank 0 alone finds out, broadcast, and what each finds out, gathered by all."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch.distributed as dist

_TIMEOUT = timedelta(days=30)


class FirstRank:
    """Rank 0 and those that hear from it; all of them make one, in a process group that is there.

    They wait as long as it takes: what rank 0 waits for may be minutes away, and NCCL's groups give a rank up after ten.
    """

    def __init__(self) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.here = self.rank == 0
        self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT) if self.ranks > 1 else None

    def broadcast(self, value: Any = None) -> Any:
        """What rank 0 has for `value`. Every rank calls it; none is through before rank 0 has called it."""
        if self._group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, group=self._group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """What every rank has for `value`, in their order. Every rank calls it, and is told of all."""
        if self._group is None:
            return [value]
        values = [None] * self.ranks
        dist.all_gather_object(values, value, group=self._group)
        return values
