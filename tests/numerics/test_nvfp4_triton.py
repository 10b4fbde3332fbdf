"""The Triton kernel has the bits of plain PyTorch: on a GPU, or without one in Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecraft.numerics import backend, nvfp4
from tests.numerics.tensors import bits, tensors

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()),
                                reason="needs triton, and a GPU or TRITON_INTERPRET=1")

KINDS = {
    "rows": {}, "rows, stochastic": {"stochastic": True, "seed": 11}, "rows, calibrated": {"tensor_amax": torch.tensor(1.5)},
    "columns": {"dim": -2}, "columns, stochastic": {"dim": -2, "stochastic": True, "seed": -3},
    "tiles": {"two_dimensional": True}, "tiles, stochastic": {"two_dimensional": True, "stochastic": True, "seed": 2**40},
}


def both(x, **options):
    from stagecraft.numerics import nvfp4_triton

    x = x.float() if INTERPRETED else x  # the interpreter truncates to bfloat16 where a GPU rounds
    given_options = {"dim": -1, "two_dimensional": False, "stochastic": False, "seed": 0, "tensor_amax": None, **options}
    on_device = {key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for key, value in given_options.items()}
    with backend.use("eager"):
        return nvfp4_triton.quantize_dequantize(x.to(DEVICE), **on_device).cpu(), nvfp4.quantize_dequantize(x, **given_options)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_the_eager_ones(kind):
    @settings(max_examples=25, deadline=None)
    @given(x=tensors(), rows=st.integers(1, 40), columns=st.integers(1, 150), matrices=st.integers(1, 3))
    def check(x, rows, columns, matrices):
        size = matrices * rows * columns
        ours, eager = both(x.flatten().repeat(-(-size // x.numel()))[:size].view(matrices, rows, columns), **KINDS[kind])
        assert torch.equal(bits(ours), bits(eager))

    check()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["rows", "columns", "tiles"])
def test_broken_becomes_nan(kind, broken):
    x = torch.ones(20, 40)
    x[1, 3] = broken
    ours, eager = both(x, **KINDS[kind])
    assert ours.isnan().all() and eager.isnan().all()


def test_one_dimension_and_nothing_but_zeros():
    ours, eager = both(torch.randn(40, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(bits(ours), bits(eager))
    assert torch.equal(both(torch.zeros(4, 32))[0], torch.zeros(4, 32))
