"""Process groups: how long they wait, and what goes with them."""

import sys
import weakref
from datetime import timedelta

import pytest
from torch.distributed import distributed_c10d

from stagecraft.contract.errors import UserError
from stagecraft.engine import parallel
from tests.engine.test_trainer import batch, new_trainer


def test_every_group_waits_as_long_as_it_is_told(monkeypatch):
    """The timeouts that torch is given, for the ranks' group and for those that megatron-core makes of it."""
    parallel.shutdown()
    told, make = [], distributed_c10d._new_process_group_helper
    monkeypatch.setattr(distributed_c10d, "_new_process_group_helper",
                        lambda *args, **options: (told.append((options.get("group_desc"), options["timeout"])), make(*args, **options))[1])
    parallel.initialize(seed=0, timeout=timedelta(seconds=3600))
    assert len(told) > 10
    # Megatron gives this one no timeout, and has it for checkpoints of its own optimizers alone.
    assert {group for group, timeout in told if timeout != timedelta(seconds=3600)} == {"EXPERT_DATA_PARALLEL_GROUP_GLOO"}


def test_more_ranks_than_gpus_are_one_line(monkeypatch):
    """Before anything is asked of CUDA, which says "invalid device ordinal"."""
    parallel.shutdown()
    monkeypatch.setattr(parallel, "ON_CPU", False)
    monkeypatch.setattr(parallel.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(parallel.torch.cuda, "set_device", lambda device: pytest.fail(f"asked for GPU {device}"))
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"^processes: 2 ranks for the 1 GPUs of this machine: each needs .* - set it to 1, or "):
        parallel.initialize(seed=0)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")  # a launcher that does not tell
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match=r"^processes: 2 ranks for the 1 GPUs"):
        parallel.initialize(seed=0)
    monkeypatch.setattr(parallel.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(parallel.torch.cuda, "set_device", lambda device: asked.append(device))
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda backend, timeout: asked.append(backend) or sys.exit())
    asked = []
    with pytest.raises(SystemExit):
        parallel.initialize(seed=0)
    assert asked == [1, "nccl"]


def test_a_trainer_that_was_left_is_gone():
    """On a GPU the next one would have to fit beside it."""
    parallel.shutdown()
    parallel.initialize(seed=0)
    trainer = new_trainer()
    trainer.step([batch(0)])
    left = weakref.ref(trainer.module)
    del trainer
    parallel.leave_groups()
    assert left() is None
    assert list(distributed_c10d._world.pg_map) == [distributed_c10d.group.WORLD]  # each of the others would keep buffers there
    parallel.shutdown()
