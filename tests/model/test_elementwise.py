"""The C++ loops of the norm and of the activation against their definitions in float64: values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecraft.model.activation import squared_relu
from stagecraft.model.loops import library
from stagecraft.model.norm import rms_norm

EPSILON = 1e-5


@pytest.fixture(autouse=True, scope="module")
def compiled():
    assert library() is not None


def agree(ours, reference, *tensors, first=-1.0, last=1.0):
    """Values and all gradients, to float32's rounding of the largest, where those of the result go evenly from `first` to `last`."""
    found = []
    for function, dtype in ((ours, torch.float32), (reference, torch.float64)):
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in tensors]
        y = function(*leaves)
        y.backward(torch.linspace(first, last, y.numel(), dtype=dtype).view(y.shape))
        found.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=3e-6 * float(other.abs().max()))


def normal(seed, *shapes, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [spread * torch.randn(shape, generator=generator) for shape in shapes]


def defined(x, weight, groups):
    grouped = x.unflatten(-1, (groups, -1))
    return (grouped / (grouped.square().mean(-1, keepdim=True) + EPSILON).sqrt()).flatten(-2) * weight


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.sampled_from([1, 2, 4]), st.integers(2, 70), st.sampled_from([1e-2, 1.0, 1e3]),
       st.booleans(), st.integers(0, 99))
def test_the_norm_is_its_definition(batch, length, groups, size, spread, strided, seed):
    x, weight = normal(seed, (batch, length, groups * size), (groups * size,))
    x = spread * (x.transpose(0, 1) if strided else x)
    agree(lambda x, weight: rms_norm(x, weight, EPSILON, groups), lambda x, weight: defined(x, weight, groups), x, weight)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 70), st.booleans(), st.integers(0, 99))
def test_the_activation_is_its_definition(rows, features, weighed, seed):
    x, weight = normal(seed, (rows, features), (rows,), spread=3.0)
    if weighed:  # of one sign: a weight's gradient is a sum, and one that cancels says nothing of how its terms were rounded
        agree(squared_relu, lambda x, weight: x.clamp_min(0).square() * weight[:, None], x, weight, first=-2.0, last=-0.1)
        agree(squared_relu, lambda x, weight: x.clamp_min(0).square() * weight[:, None], x, weight, first=0.1)
    else:
        agree(squared_relu, lambda x: x.clamp_min(0).square(), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_keep_theirs_and_what_is_no_number_stays_none(dtype):
    x = torch.ones(3, 8, dtype=dtype)
    x[1, 2] = torch.nan
    for y in (rms_norm(x, torch.ones(8, dtype=dtype), EPSILON), rms_norm(x, torch.ones(8, dtype=dtype), EPSILON, 2), squared_relu(x),
              squared_relu(x, torch.ones(3))):
        assert y.dtype == dtype and torch.equal(y.isnan().any(-1), torch.tensor([False, True, False]))
