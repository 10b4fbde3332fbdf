"""Each data-parallel rank has the optimizer's state of its share of the parameters; that the steps are the same: test_layouts.py."""

import json

import pytest
import torch

from stagecraft.engine import checkpoints
from tests.engine.test_trainer import new_trainer
from tests.processes import torchrun


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_ranks_have_half_of_the_state_each_and_the_same_weights(tmp_path, optimizer, dtype):
    torchrun(2, "-m", "tests.engine.sharded_ranks", str(tmp_path), optimizer, dtype, STAGECRAFT_NUMERICS="eager")
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    first, second = (rank["moments"] for rank in ranks)
    assert not first.keys() & second.keys()
    assert sum(first.values()) + sum(second.values()) == ranks[0]["values"]
    assert max(sum(first.values()), sum(second.values())) < 0.6 * ranks[0]["values"]
    # float32 values of its own bfloat16 parameters; routers, A and D are float32 in either case.
    assert [rank["main"] for rank in ranks] == [rank["narrow"] for rank in ranks]
    assert all(rank["narrow"] > 0.3 * rank["values"] if dtype == "bfloat16" else not rank["narrow"] for rank in ranks)
    assert all(ranks[0][key] == ranks[1][key] for key in ("values", "sum", "squares"))

    alone = new_trainer(optimizer, dtype=getattr(torch, dtype))  # goes on from their checkpoint with all of it
    assert checkpoints.resume(tmp_path, alone) is not None and alone.updates == 2
    found = alone.moments()
    assert {name: own["exp_avg"].numel() for name, own in found.items()} == {**first, **second}
    assert all(own["exp_avg"].abs().sum() > 0 for own in found.values())
    if dtype == "bfloat16":
        assert all(torch.equal(own["main"].bfloat16(), parameter) for name, parameter in alone.module.named_parameters()
                   if parameter.dtype == torch.bfloat16 and "main" in (own := found[name]))
