"""Process groups share a device: their threads do not add up, in a process that trains one model after another."""

from pathlib import Path

import torch
import torch.distributed as dist

from stagecraft.engine import parallel
from stagecraft.engine.packs import packed_batch
from stagecraft.engine.trainer import Optimization, Trainer
from tests.architectures import tiny


def loops() -> int:
    """Threads that wait for gloo's sockets."""
    return sum((task / "comm").read_text().strip() == "gloo_tcp_loop" for task in Path("/proc/self/task").iterdir())


def test_all_groups_have_one_thread_that_waits_for_sockets():
    before, counted = loops(), []
    for _ in range(2):
        parallel.initialize(seed=0)
        trainer = Trainer(tiny(), Optimization(lr=1e-3, steps=1), max_sequence_length=64)
        trainer.step([packed_batch([([1, 2, 3, 4], [0, 0, 1, 1])])])
        values = torch.ones(3)
        dist.all_reduce(values)
        assert values.tolist() == [1, 1, 1]
        assert loops() > 0, "such threads have another name now"
        counted.append(loops() - before)
        parallel.shutdown()
    assert max(counted) <= 1, "each group has a device of its own"
