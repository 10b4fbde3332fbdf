"""What every rank of test_sharded_optimizer.py runs: how many values the optimizer has here, and that all have the same weights."""

import json
import sys
from pathlib import Path

from stagecraft.megatron_cpu import ON_CPU  # noqa: F401

import torch
import torch.distributed as dist

from stagecraft.engine import checkpoints, parallel
from tests.engine.test_trainer import batch, new_trainer

if __name__ == "__main__":
    out, optimizer, dtype = Path(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3])
    trainer = new_trainer(optimizer, dtype=dtype)
    for at in range(2):
        trainer.step([batch(2 * at + dist.get_rank())])
    checkpoints.save(out, trainer)
    weights = torch.cat([parameter.detach().double().flatten() for parameter in trainer.module.parameters()])
    moments = trainer.moments()
    narrow = {name for name, parameter in trainer.module.named_parameters() if parameter.dtype == torch.bfloat16}
    told = {"values": len(weights), "moments": {name: own["exp_avg"].numel() for name, own in moments.items()},
            "main": sum(own["main"].numel() for own in moments.values() if "main" in own),
            "narrow": sum(own["exp_avg"].numel() for name, own in moments.items() if name in narrow),
            "sum": weights.sum().item(), "squares": weights.square().sum().item()}
    (out / f"rank-{dist.get_rank()}.json").write_text(json.dumps(told))
    parallel.shutdown()
