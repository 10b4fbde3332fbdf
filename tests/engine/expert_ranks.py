"""What every rank of test_sharded_optimizer.py's test of experts runs: it reads weights twice, and counts what it reads and receives."""

import json
import sys
from pathlib import Path

from stagecraft.megatron_cpu import ON_CPU  # noqa: F401

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import exchange_utils
from megatron.core.dist_checkpointing.dict_utils import nested_values

from stagecraft.engine import checkpoints, parallel, replicas
from stagecraft.engine.layout import Layout
from tests.engine import layouts
from tests.engine.sharded_ranks import Counted

if __name__ == "__main__":
    received, planned = [0], [0]
    broadcast, plan = dist.broadcast, replicas.FullyParallelLoadStrategyWrapper.apply_loading_parallelization.__globals__

    def counted(tensor, src, **options):
        received[0] += tensor.numel() * (src != dist.get_rank())
        return broadcast(tensor, src, **options)

    exchange_utils.torch.distributed.broadcast = counted
    inner = plan["determine_main_replica_uniform_distribution"]

    def planning(*args, **options):
        planned[0] += 1
        return inner(*args, **options)

    plan["determine_main_replica_uniform_distribution"] = planning
    replicas.TorchDistLoadShardedStrategy = Counted
    out = Path(sys.argv[1])
    parallel.initialize(7, Layout(tensor=1, pipeline=1, context=1, expert=2))
    module = layouts.trainer_of(None).module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items() if torch.is_tensor(tensor)}
    checkpoints.save_weights(out / "weights", module)
    reader = replicas.Reader()
    for _ in range(2):
        received[0] = Counted.values = 0
        for parameter in module.parameters():
            parameter.data.zero_()
        checkpoints.load_weights(out / "weights", module, reader)
    own = sum(shard.data.numel() for shard in nested_values(module.sharded_state_dict(prefix="")) if torch.is_tensor(shard.data))
    same = all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items() if torch.is_tensor(tensor))
    told = {"own": own, "read": Counted.values, "received": received[0], "planned": planned[0], "same": same}
    (out / f"rank-{dist.get_rank()}.json").write_text(json.dumps(told))
    parallel.shutdown()
