"""What the all-to-all and the collectives send, against enumeration."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecraft.planning.communication import collective, reached, training_traffic
from stagecraft.planning.formats import formats
from stagecraft.planning.layout import Layout, Workload
from tests.planning.models import SUPER


@pytest.mark.parametrize(("groups", "experts", "chosen"), [(4, 8, 3), (2, 8, 4), (8, 8, 2), (1, 6, 3)])
def test_groups_reached_are_those_of_all_choices(groups, experts, chosen):
    size = experts // groups
    counts = [len({expert // size for expert in choice}) for choice in combinations(range(experts), chosen)]
    assert reached(groups, experts, chosen) == pytest.approx(sum(counts) / len(counts))


@given(st.integers(1, 6), st.integers(0, 4))
def test_a_collective_sends_what_a_ring_sends(bits, stride_bits):
    members, stride, domain = 2**bits, 2**stride_bits, 8
    sent = collective(1000.0, members, stride, domain)
    near = min(members, max(1, domain // stride))
    assert sent.nvlink == pytest.approx(1000 * (near - 1) / near)
    # All of a domain's members together send over the network what each domain must hand on.
    domains = members // near
    assert sent.network * near == pytest.approx(1000 * (domains - 1) / domains)


def test_one_gpu_sends_nothing():
    traffic = training_traffic(SUPER, Workload(8192, 1, 2), Layout(), formats("training", "nvfp4"), 8)
    assert all(sent.nvlink == sent.network == 0 for sent in traffic.values())


def test_the_latent_width_is_what_travels_to_the_experts():
    work, recipe = Workload(8192, 64), formats("training", "bf16")
    sent = training_traffic(SUPER, work, Layout(ep=64, dp=64), recipe, 72)["expert"].nvlink
    tokens, layers, passes, two_bytes = 8192, 40, 4, 2
    assert sent == pytest.approx(tokens * layers * passes * 1024 * two_bytes * reached(64, 512, 22) * 63 / 64)
