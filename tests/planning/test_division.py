"""The planner against the engine: what the one deems possible, the other accepts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecraft.contract.params import parse, read_profile
from stagecraft.engine.layout import Layout as Divided
from stagecraft.model.config import Architecture
from stagecraft.planning.architecture import nemotron_h
from stagecraft.planning.formats import formats
from stagecraft.planning.hardware import efficiencies, gpu
from stagecraft.planning.layout import Layout, Workload, problems
from stagecraft.planning.search import search
from stagecraft.planning.step import Roofline
from tests.planning.models import LAPTOP_SHAPES, ROOT, SUPER_SHAPES

SHAPES = {"super-120b": SUPER_SHAPES, "laptop": LAPTOP_SHAPES,
          "h200": parse(Architecture, read_profile(ROOT / "params" / "h200.yaml")["pretrain"]["architecture"], "architecture")}
SIZE = st.sampled_from([1, 2, 3, 4, 5, 8, 16, 32, 64])


def divided(layout):
    return Divided(tensor=layout.tp, pipeline=layout.pp, context=layout.cp, expert=layout.ep, recompute=layout.recompute)


def accepts(shapes, layout, work):
    try:
        divided(layout).check(shapes, work.length, work.optimizer)
    except ValueError:
        return False
    return divided(layout).data(layout.gpus) == layout.dp


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=300, deadline=None)
@given(tp=SIZE, cp=SIZE, pp=SIZE, ep=SIZE, dp=SIZE, micro=st.sampled_from([1, 2, 4]), length=st.sampled_from([256, 300, 4096, 8190, 32768]),
       optimizer=st.sampled_from(["adamw", "muon"]))
def test_what_the_planner_deems_possible_the_engine_accepts(name, tp, cp, pp, ep, dp, micro, length, optimizer):
    """And the other way round, where the experts divide the ranks: the planner loses no layout."""
    layout, work = Layout(tp, cp, pp, ep, dp * ep, micro), Workload(length, micro * dp * ep, 0, optimizer)
    possible = not list(problems(layout, nemotron_h(SHAPES[name]), work, layout.gpus))
    assert possible == accepts(SHAPES[name], layout, work)


@pytest.mark.parametrize("name, work", [
    ("super-120b", Workload(8192, 64, 0, "muon")), ("h200", Workload(32768, 64)), ("laptop", Workload(256, 32, 1, "muon"))])
def test_what_the_search_proposes_the_engine_accepts(name, work):
    """The smallest of the largest model would be divided by tensor, if Muon could do with parts of matrices."""
    found = search(nemotron_h(SHAPES[name]), work, 8, Roofline(gpu("B200"), efficiencies()), formats("training", "bf16"))
    assert all(accepts(SHAPES[name], candidate.layout, work) for candidate in (found.best, found.smallest) if candidate)
