"""Process groups wait as long as the watchdog needs to name the rank that is waited for."""

from datetime import timedelta

from torch.distributed import distributed_c10d

from stagecraft.engine import parallel


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
