"""One gloo device for all process groups of a process.

torch.distributed.distributed_c10d (`_new_process_group_helper`) gives every group of gloo a device of its own, and with it a thread that
wakes up a hundred times a second. Megatron makes 22 groups for one process, vLLM its own, and a model that was trained holds its groups
after they were left: the threads took more processor time than some of what they were for. A device serves any number of groups.
"""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import Any

from torch.distributed import distributed_c10d


def share_device() -> None:
    """For groups that are made from now on; where PyTorch has no gloo there is nothing to do."""
    upstream = getattr(distributed_c10d, "ProcessGroupGloo", None)
    if upstream is None or upstream.__name__ != "ProcessGroupGloo":
        return
    device = functools.cache(upstream.create_default_device)

    class OnOneDevice(upstream):
        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta):
            options = upstream._Options()
            options._devices, options._timeout = [device()], timeout
            super().__init__(store, rank, size, options)

    distributed_c10d.ProcessGroupGloo = OnOneDevice
