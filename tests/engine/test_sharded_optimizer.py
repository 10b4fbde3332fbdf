"""Of data-parallel ranks each has, writes and reads its share of the optimizer's state; that the steps are the same: test_layouts.py."""

import json

import pytest
import torch

from stagecraft.engine import checkpoints
from tests.engine.test_trainer import new_trainer
from tests.processes import torchrun


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_ranks_have_write_and_read_half_of_the_state_each_and_the_same_weights(tmp_path, optimizer, dtype):
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

    # All of it is in the files once, also the weights, of which each rank has all; each writes and reads half.
    whole = ranks[0]["values"] + sum(2 * sum(rank["moments"].values()) + rank["main"] for rank in ranks)
    read, written = ([rank[key] for rank in ranks] for key in ("read", "written"))
    assert whole <= sum(read) < 1.001 * whole  # the routers' buffers are no parameters
    assert max(read) < 0.51 * sum(read) and max(written) < 0.52 * sum(written)
    assert all(rank["same"] and rank["early"] for rank in ranks)

    alone = new_trainer(optimizer, dtype=getattr(torch, dtype))  # goes on from their checkpoint with all of it
    assert checkpoints.resume(tmp_path, alone) is not None and alone.updates == 2
    found = alone.moments()
    assert {name: own["exp_avg"].numel() for name, own in found.items()} == {**first, **second}
    assert all(own["exp_avg"].abs().sum() > 0 for own in found.values())
    if dtype == "bfloat16":
        assert all(torch.equal(own["main"].bfloat16(), parameter) for name, parameter in alone.module.named_parameters()
                   if parameter.dtype == torch.bfloat16 and "main" in (own := found[name]))


@pytest.mark.slow
def test_every_value_of_the_weights_comes_to_a_rank_once_and_the_second_reading_is_planned_already(tmp_path):
    """Four ranks, of which two have the same experts: nobody is sent those that it does not hold."""
    torchrun(4, "-m", "tests.engine.expert_ranks", str(tmp_path), STAGECRAFT_NUMERICS="eager")
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(4)]
    for rank in ranks:
        assert rank["read"] + rank["received"] == rank["own"] > 0 and rank["same"]
        assert rank["planned"] == 2  # in each of two groups at the first reading
    assert max(rank["read"] for rank in ranks) < 0.4 * ranks[0]["own"]
