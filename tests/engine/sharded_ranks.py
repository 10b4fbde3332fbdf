"""What every rank of test_sharded_optimizer.py runs: what of the optimizer, of a checkpoint's files and of its reading falls to it, and
whether it sends its gradients while the backward pass goes on."""

import json
import sys
from pathlib import Path

from stagecraft.megatron_cpu import ON_CPU  # noqa: F401

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup

from stagecraft.engine import checkpoints, parallel, replicas
from tests.engine.test_trainer import batch, new_trainer


class Counted(TorchDistLoadShardedStrategy):
    """Counts the values that this rank reads from files."""

    values = 0

    def load(self, state, *args, **options):
        Counted.values += sum(shard.data.numel() for shard in nested_values(state) if torch.is_tensor(shard.data))
        return super().load(state, *args, **options)


def count_early() -> list[int]:
    """Gets the number of gradients' buckets that were sent within a backward pass."""
    early, start = [0], _ParamAndGradBucketGroup.start_grad_sync

    def counted(self, *args, **options):
        early[0] += torch._C._current_graph_task_id() != -1
        return start(self, *args, **options)

    _ParamAndGradBucketGroup.start_grad_sync = counted
    return early


if __name__ == "__main__":
    early = count_early()
    replicas.TorchDistLoadShardedStrategy = Counted
    out, optimizer, dtype = Path(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3])
    trainer = new_trainer(optimizer, dtype=dtype)
    for at in range(2):
        trainer.step([batch(2 * at + dist.get_rank())])
    checkpoints.save(out, trainer)
    directory = out / "step-00000002"
    written = sum(path.stat().st_size for path in directory.glob(f"__{dist.get_rank()}_*"))
    before = {name: tensor.clone() for name, tensor in trainer.module.state_dict().items() if torch.is_tensor(tensor)}
    for parameter in trainer.module.parameters():
        parameter.data.zero_()
    checkpoints.resume(out, trainer)
    same = all(torch.equal(tensor, before[name]) for name, tensor in trainer.module.state_dict().items() if torch.is_tensor(tensor))
    weights = torch.cat([parameter.detach().double().flatten() for parameter in trainer.module.parameters()])
    moments = trainer.moments()
    narrow = {name for name, parameter in trainer.module.named_parameters() if parameter.dtype == torch.bfloat16}
    told = {"values": len(weights), "moments": {name: own["exp_avg"].numel() for name, own in moments.items()},
            "main": sum(own["main"].numel() for own in moments.values() if "main" in own),
            "narrow": sum(own["exp_avg"].numel() for name, own in moments.items() if name in narrow),
            "written": written, "read": Counted.values, "same": same, "early": early[0],
            "sum": weights.sum().item(), "squares": weights.square().sum().item()}
    (out / f"rank-{dist.get_rank()}.json").write_text(json.dumps(told))
    parallel.shutdown()
