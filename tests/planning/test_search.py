"""The search against brute force over the same space, and what a step's time may do."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.peers import peer
from stagecraft.planning.formats import formats
from stagecraft.planning.hardware import efficiencies, gpu
from stagecraft.planning.layout import RECOMPUTE, Layout, Workload, problems
from stagecraft.planning.memory import training_memory
from stagecraft.planning.search import powers, search
from stagecraft.planning.step import Roofline, training_step
from tests.planning.models import SUPER

NANO = peer("nemotron-3-nano")
RECIPE = formats("training", "bf16")
WORK = Workload(4096, 64)


def roofline(name="H100", **changes):
    return Roofline(replace(gpu(name), **changes), efficiencies())


def brute_force(model, work, gpus, machine):
    """(seconds, layout) of every layout that is possible and fits, enumerated without the search's own shapes."""
    limit = machine.gpu.memory * machine.efficiency.memory_use
    for tp in powers(min(8, gpus)):
        for pp in powers(gpus // tp):
            for ep in powers(gpus):
                for micro in (1, 2, 4, 8):
                    for recompute in RECOMPUTE:
                        layout = Layout(tp, 1, pp, ep, gpus // tp // pp, micro, recompute)
                        if not list(problems(layout, model, work, gpus)) and training_memory(model, work, layout, RECIPE).total <= limit:
                            yield training_step(model, work, layout, machine, RECIPE).seconds, layout


@pytest.mark.parametrize("memory", [80e9, 110e9, 400e9])
def test_the_search_finds_what_brute_force_finds(memory):
    machine = roofline(memory=memory)
    found = search(NANO, WORK, 8, machine, RECIPE)
    every = list(brute_force(NANO, WORK, 8, machine))
    assert (found.best is None) == (not every)
    if every:
        assert found.best.step.seconds == min(seconds for seconds, _ in every)
        assert found.best.memory.total <= memory * machine.efficiency.memory_use


def test_what_does_not_fit_comes_with_the_smallest():
    found = search(SUPER, WORK, 8, roofline(), RECIPE)
    assert found.best is None and found.smallest.memory.total > 80e9


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.sampled_from(RECOMPUTE))
def test_times_add_up_and_better_machines_are_never_slower(ep, micro, recompute):
    layout = Layout(ep=ep, dp=8, micro=micro, recompute=recompute)
    step = training_step(NANO, WORK, layout, roofline(), RECIPE)
    assert step.seconds == pytest.approx(sum(step.parts.values()))
    for changes in ({"bandwidth": 5e12}, {"nvlink": 9e11}, {"peak": {**gpu("H100").peak, "bfloat16": 2e15}}):
        assert training_step(NANO, WORK, layout, roofline(**changes), RECIPE).seconds <= step.seconds
    bound = training_step(NANO, WORK, layout, Roofline(gpu("H100"), efficiencies().ideal()), RECIPE)
    flops = bound.flops_per_token * WORK.tokens / 8
    assert flops / gpu("H100").peak["bfloat16"] < bound.seconds < step.seconds  # never above the peak
    levels = [training_step(NANO, WORK, replace(layout, recompute=level), roofline(), RECIPE).seconds for level in RECOMPUTE]
    assert levels == sorted(levels)
