"""Bytes of a training step: the states of a model that is really trained, and how memory moves with the layout."""

from dataclasses import replace
from typing import get_args, get_type_hints

import stagecraft.megatron_cpu  # noqa: F401

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.recompute import kept
from stagecraft.engine import parallel
from stagecraft.engine.batch import Batch
from stagecraft.engine.layout import Layout as DividedRun
from stagecraft.engine.trainer import Optimization, Trainer
from stagecraft.planning.architecture import nemotron_h
from stagecraft.planning.formats import formats
from stagecraft.planning.layout import RECOMPUTE, Layout, Workload, problems
from stagecraft.planning.memory import State, training_memory
from tests.architectures import architecture, tiny
from tests.planning.models import SUPER


@pytest.fixture
def process_group():
    parallel.initialize(seed=7)
    yield
    parallel.shutdown()


def trained(shapes, length, **options):
    """A model after one step over a row of tokens, and the bytes that its forward pass left for the backward pass."""
    trainer = Trainer(shapes, Optimization(lr=1e-3, steps=10), max_sequence_length=length, precision="bf16", **options)
    tokens = torch.randint(0, shapes.vocab_size, (1, length))
    return trainer, kept(trainer, Batch(tokens, tokens, torch.ones(1, length)))


def test_states_are_those_of_a_model_under_training(process_group):
    shapes = tiny()
    trainer, _ = trained(shapes, 32, mtp_depths=1)
    parameters = list(trainer.module.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    gradients = sum(p.main_grad.numel() * p.main_grad.element_size() for p in parameters)
    adam = trainer.optimizer.chained_optimizers[0] if hasattr(trainer.optimizer, "chained_optimizers") else trainer.optimizer
    moments = sum(t.numel() * t.element_size() for state in adam.optimizer.state.values() for t in state.values() if torch.is_tensor(t))
    planned = training_memory(nemotron_h(shapes), Workload(32, 1, 1), Layout(), formats("training", "float32"))
    assert (planned.weights, planned.gradients, planned.optimizer) == (weights, gradients, moments)


def test_what_the_planner_lets_be_computed_again_the_stages_can():
    assert get_args(get_type_hints(DividedRun)["recompute"]) == RECOMPUTE


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize(("pattern", "more"), [("*", 1.5), ("E", 1.5), ("M", 4.0)])
def test_activations_are_nearly_those_that_autograd_keeps(process_group, pattern, more, recompute):
    """Eager operators keep some copies that fused kernels do not; the eager scan keeps its decay matrices, which a kernel makes again."""
    if recompute == "full" or (recompute == "moe" and pattern == "E"):
        more = 1.01
    real, planned = [], []
    for times in (1, 2):
        shapes = architecture(hybrid_override_pattern=pattern * times, num_nextn_predict_layers=0)
        real.append(trained(shapes, 256, mtp_depths=0, aux_loss=0.0, recompute=recompute)[1])
        planned.append(training_memory(nemotron_h(shapes), Workload(256, 1), Layout(recompute=recompute), formats("training", "float32")))
    layer = planned[1].activations - planned[0].activations
    assert layer <= real[1] - real[0] <= more * layer
    rest = real[0] - (real[1] - real[0])
    assert planned[0].logits <= rest <= 1.25 * planned[0].logits


def needed(layout, work, recipe="nvfp4", state=None):
    return training_memory(SUPER, work, layout, formats("training", recipe), state)


@pytest.mark.parametrize("ranks", [2, 8])
def test_a_context_parallel_rank_keeps_the_keys_and_values_of_the_whole_row(ranks):
    """Whose other activations are of its own tokens."""
    shapes, length = architecture(hybrid_override_pattern="*", num_nextn_predict_layers=0), 64
    alone, divided = (training_memory(nemotron_h(shapes), Workload(length * cp, cp), Layout(cp=cp), formats("training", "float32"))
                      for cp in (1, ranks))
    assert divided.activations - alone.activations == (ranks - 1) * length * 2 * shapes.num_key_value_heads * shapes.head_dim * 4


@pytest.mark.parametrize("ranks", [2, 4])
def test_each_of_more_ranks_than_key_heads_keeps_a_copy_of_one(ranks):
    """As megatron-core's attention does (`num_query_groups_per_partition`); all else is divided."""
    shapes, length, cp = architecture(hybrid_override_pattern="*", num_nextn_predict_layers=0, num_key_value_heads=1), 64, 8
    recipe, work = formats("training", "float32"), Workload(length * cp, 1)
    alone, divided = (training_memory(nemotron_h(shapes), work, Layout(tp=tp, cp=cp), recipe).activations for tp in (1, ranks))
    keys = length * cp * 2 * shapes.head_dim * 4
    assert divided == pytest.approx((alone - keys) / ranks + keys)


def test_a_layout_known_to_run_fits_and_one_that_cannot_does_not():
    work = Workload(8192, 512, 2)
    assert needed(Layout(ep=64, dp=64), work).total < 0.94 * 279e9  # NVIDIA's own on GB300
    assert needed(Layout(tp=8, ep=16, dp=2, recompute="full"), work, "bf16").total > 80e9  # 16 bytes per parameter on 16 H100


def test_without_sharding_the_state_is_sixteen_or_eighteen_bytes_a_parameter():
    memory = needed(Layout(), Workload(8192, 1, 1), "bf16")
    assert (memory.weights + memory.gradients + memory.optimizer) / (120.669e9 + 2.942e9) == pytest.approx(18, rel=1e-4)


@st.composite
def layouts(draw):
    power = st.sampled_from([1, 2, 4, 8])
    tp, pp, dp = draw(power), draw(power), draw(power)
    ep = draw(st.sampled_from([e for e in (1, 2, 4, 8, 16) if (tp * dp) % e == 0]))
    return Layout(tp, 1, pp, ep, dp, draw(st.sampled_from([1, 2])), draw(st.sampled_from(RECOMPUTE)))


@settings(max_examples=30, deadline=None)
@given(layouts())
def test_more_gpus_under_the_same_sharding_never_need_more_each(layout):
    work = Workload(8192, 256, 2)
    assert not list(problems(layout, SUPER, work, layout.gpus))
    assert needed(replace(layout, dp=2 * layout.dp), work).total <= needed(layout, work).total


@settings(max_examples=30, deadline=None)
@given(layouts())
def test_every_level_of_recomputation_and_every_cut_saves(layout):
    work, layout = Workload(8192, 256, 2), replace(layout, pp=1)  # one stage: which of several is the largest may change
    levels = [needed(replace(layout, recompute=level), work) for level in RECOMPUTE]
    assert levels[0].activations > levels[1].activations > levels[2].activations
    longer = needed(layout, Workload(16384, 256, 2))
    assert longer.activations == pytest.approx(2 * needed(layout, work).activations)
    halved = needed(layout, work, state=State(gradient=2.0))
    assert halved.gradients == needed(layout, work).gradients / 2
