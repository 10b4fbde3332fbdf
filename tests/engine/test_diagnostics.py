"""The health figures against the same figures taken by other means, on one rank and on two."""

import json
import math
import sys
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F

from stagecraft.engine.diagnostics import _balance
from stagecraft.model.losses import LOSSES, RoundingLosses
from stagecraft.model.products import GroupedProduct, LinearProduct, set_noise
from stagecraft.numerics import nvfp4
from tests.engine.test_trainer import batch, new_trainer
from tests.processes import torchrun


def test_figures_come_every_so_many_steps_and_change_nothing():
    looked, plain = new_trainer(diagnose_every=2), new_trainer()
    steps = [(looked.step([batch(at)]), plain.step([batch(at)])) for at in range(4)]
    assert [bool(ours.diagnostics) for ours, _ in steps] == [False, True, False, True]
    assert all((ours.loss, ours.grad_norm) == (theirs.loss, theirs.grad_norm) for ours, theirs in steps)
    for name, tensor in looked.weights().items():
        assert torch.equal(tensor, plain.weights()[name]), name
    assert not LOSSES.watching


def test_zero_gradients_of_the_embedding_are_the_tokens_that_did_not_occur():
    trainer = new_trainer(precision="bf16", mtp_depths=0, diagnose_every=1)
    for occurring in (20, 50):
        b = batch(0)
        b.tokens[:] = torch.randint(0, occurring, b.tokens.shape)
        figures = trainer.step([b]).diagnostics
        assert figures["zero gradients/embedding"] == pytest.approx(1 - len(b.tokens.unique()) / 256)
    assert figures["zero gradients/head"] == 0
    assert not any(name.startswith(("flushed", "saturated")) for name in figures)  # nothing was rounded


@pytest.mark.parametrize("depths", [0, 2])
def test_router_load_is_what_the_dispatcher_sends(depths):
    """Of a layer, and of the MTP block's, which every depth passes."""
    trainer = new_trainer(mtp_depths=depths, diagnose_every=1)
    seen = defaultdict(list)
    for name, module in trainer.module.named_modules():
        if type(module).__name__ == "GroupedExperts":
            module.register_forward_hook(lambda module, inputs, output, name=name: seen[name].append(inputs[1].double()))
    figures = trainer.step([batch(0), batch(1)]).diagnostics
    assert [len(each) for each in seen.values()] == ([2, 4] if depths else [2])  # of two microbatches
    loads = [torch.stack(each).sum(0) for each in seen.values()]
    entropies = [-sum(float(s) * math.log(s) for s in load / load.sum() if s) / math.log(8) for load in loads]
    assert figures["load/max"] == pytest.approx(max(float(load.max() / load.mean()) for load in loads))
    assert figures["load/entropy"] == pytest.approx(sum(entropies) / len(loads))
    assert figures["load/idle"] == float((torch.stack(loads) == 0).double().mean())


def test_balance_of_extremes():
    even, one = torch.full((2, 4), 5.0), torch.tensor([[12.0, 0, 0, 0]])
    assert _balance(even) == {"load/max": 1.0, "load/entropy": pytest.approx(1.0), "load/idle": 0.0}
    assert _balance(one) == {"load/max": 4.0, "load/entropy": 0.0, "load/idle": 0.75}


@pytest.fixture
def watch():
    LOSSES.watch(True)
    yield LOSSES
    LOSSES.watch(False)


def test_flushed_and_saturated_elements_of_a_product(watch):
    x = torch.full((32, 32), 1.0)
    x[:, 1::2] = 1e-3  # far below half the smallest code
    x[0, 0] = 0
    w = torch.eye(32)
    LinearProduct.apply(x, w, "nvfp4", "shared expert")
    nonzero, flushed, saturated = watch.counts["shared expert", "activations"].tolist()
    assert (nonzero, flushed) == (32 * 32 - 1, 32 * 16)
    _, scales, tensor_scale = nvfp4.quantize(x)
    assert saturated == int((x.unflatten(-1, (-1, 16)) > 6 * scales.float().unsqueeze(-1) * tensor_scale).sum())
    assert watch.counts["shared expert", "weights"].tolist()[:2] == [32, 0]


def test_every_operand_is_counted_and_the_padding_of_experts_is_not(watch):
    set_noise(0, 0)
    x, w = torch.randn(64, 32, requires_grad=True), torch.randn(2, 48, 32, requires_grad=True)
    padded = F.pad(x, (0, 0, 0, 32))
    GroupedProduct.apply(padded, w, [0, 64, 96], "nvfp4", "routed experts").sum().backward()
    counts = {operand: values.tolist() for (_, operand), values in watch.counts.items()}
    assert counts["activations"][0] == 64 * 32 and counts["weights"][0] == 2 * 48 * 32
    assert counts.keys() == {"activations", "weights", "gradients", "gradients of weight gradients", "activations of weight gradients"}
    assert 0.03 < counts["activations"][1] / counts["activations"][0] < 0.12  # a quarter code of a normal block of 16 is 0.09 sigma


def test_counts_add_up_and_begin_anew():
    losses = RoundingLosses()
    for _ in range(2):
        losses.see("head", "weights", torch.tensor([1.0, 0.0, 2.0]), torch.tensor([1.0, 0.0, 0.0]), 1)
    assert losses.counts["head", "weights"].tolist() == [4, 2, 2]
    losses.watch(True)
    assert not losses.counts


RANK = """
import json
import stagecraft.megatron_cpu
from stagecraft.engine.batch import Batch
from stagecraft.engine import parallel
from stagecraft.engine.layout import Layout
from tests.engine.test_diagnostics import *
import torch.distributed as dist
parallel.initialize(7, Layout(tensor=1, pipeline=1, context=1, expert=int(sys.argv[1])))
trainer = new_trainer(precision="bf16", mtp_depths=1, aux_loss=0.0, diagnose_every=1)
rank, world, whole = dist.get_rank(), dist.get_world_size(), batch(0, rows=2)
rows = slice(2 // world * rank, 2 // world * (rank + 1))
mine = Batch(whole.tokens[rows], whole.labels[rows], whole.loss_mask[rows])
print("RESULT" if rank == 0 else "", json.dumps(trainer.step([mine]).diagnostics))
"""


def test_two_ranks_give_the_figures_of_one():
    def run(ranks, expert):
        said = torchrun(ranks, "--no-python", sys.executable, "-c", RANK, str(expert))
        return json.JSONDecoder().raw_decode(said.split("RESULT")[1].strip())[0]

    alone = run(1, 1)
    assert 0 < alone["zero gradients/MTP block"] < 0.1  # of experts that no token came to
    for expert in (1, 2):  # what each rank has a copy of counts once, as what each has a part of
        assert run(2, expert) == pytest.approx(alone, rel=1e-6)
