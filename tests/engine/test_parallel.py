"""Process groups: how long they wait, and what goes with them."""

import weakref
from datetime import timedelta

from torch.distributed import distributed_c10d

from stagecraft.engine import parallel
from tests.engine.test_trainer import batch, new_trainer


def test_every_group_waits_as_long_as_it_is_told(monkeypatch):
    """The timeouts that torch is given, for the ranks' group and for those that megatron-core makes of it."""
    parallel.shutdown()
    told, make = [], distributed_c10d._new_process_group_helper
    monkeypatch.setattr(distributed_c10d, "_new_process_group_helper",
                        lambda *args, **options: (told.append((options.get("group_desc"), options["timeout"])), make(*args, **options))[1])
    parallel.initialize(seed=0, patience=timedelta(seconds=3600))
    assert len(told) > 10
    # Megatron gives this one no timeout, and has it for checkpoints of its own optimizers alone.
    assert {group for group, timeout in told if timeout != timedelta(seconds=3600)} == {"EXPERT_DATA_PARALLEL_GROUP_GLOO"}


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
    parallel.shutdown()
