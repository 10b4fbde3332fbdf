"""What every rank of test_saving.py runs: it says how saving ends where something fails on one rank, amid what all do."""

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from stagecraft.megatron_cpu import ON_CPU  # noqa: F401

import torch.distributed as dist
from megatron.core.dist_checkpointing import core
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from stagecraft.contract.errors import UserError
from stagecraft.engine import checkpoints, parallel
from stagecraft.engine.saving import Saver
from tests.engine.test_trainer import batch, new_trainer


def refused(number: int) -> Callable[..., None]:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def without_memory(saver: Saver, trainer: Any) -> None:
    copy(saver, trainer)
    raise RuntimeError("no memory")


if __name__ == "__main__":
    out, told = Path(sys.argv[1]), {}
    trainer, copy = new_trainer(precision="bf16", mtp_depths=0), Saver._copy
    trainer.step([batch(dist.get_rank())])
    checkpoints.save(out / "checkpoints", trainer)
    trainer.step([batch(dist.get_rank())])
    saves = {"checkpoint": lambda: checkpoints.save(out / "checkpoints", trainer),
             "weights": lambda: checkpoints.save_weights(out / "weights", trainer.module)}
    failures = {"metadata": (0, patch.object(FileSystemWriter, "finish", refused(errno.ENOSPC))),
                "format": (0, patch.object(core, "json", SimpleNamespace(dump=refused(errno.EIO)))),
                "part": (1, patch.object(filesystem_async, "_write_item", refused(errno.EDQUOT))),
                "copy": (1, patch.object(Saver, "_copy", without_memory))}
    for failure, (rank, failing) in failures.items():
        for what, save in saves.items():
            if dist.get_rank() == rank:
                failing.start()
            try:
                save()
            except UserError as error:
                told[f"{failure}, {what}"] = str(error)
            if dist.get_rank() == rank:
                failing.stop()
    (out / f"rank-{dist.get_rank()}.json").write_text(json.dumps(told))
    parallel.shutdown()
