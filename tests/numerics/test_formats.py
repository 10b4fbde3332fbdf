"""MXFP8 and FP8 against ModelOpt and PyTorch, the Hadamard transform against its algebra."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stagecraft.numerics import fp8, hadamard, mxfp8
from tests.numerics.tensors import bits, tensors


@settings(max_examples=60, deadline=None)
@given(x=tensors())
def test_mxfp8_bits_are_modelopts(x):
    from components.quantize import modelopt_cpu

    modelopt_cpu.load()
    from modelopt.torch.quantization.qtensor.mxfp8_tensor import MXFP8QTensor

    x = torch.cat([x, x.flip(-1)], -1)  # a multiple of 32
    theirs, scales = MXFP8QTensor.quantize(x)
    elements, exponents = mxfp8.quantize(x)
    assert torch.equal(exponents, scales)
    assert torch.equal(elements.view(torch.uint8), theirs._quantized_data.view(torch.uint8))
    assert torch.equal(bits(mxfp8.quantize_dequantize(x)), bits(mxfp8.dequantize(elements, exponents, x.dtype)))


@settings(max_examples=40, deadline=None)
@given(x=tensors())
def test_mxfp8_scale_is_the_smallest_power_of_two_that_holds_the_block(x):
    x = torch.cat([x, x.flip(-1)], -1).float()
    assume(float(x.abs().max()) > 1e-30)
    _, exponents = mxfp8.quantize(x)
    amax = x.double().unflatten(-1, (-1, 32)).abs().amax(-1)
    scale = torch.exp2(exponents.double() - 127)
    assert (amax <= 448 * scale).all()
    assert (amax > 448 * scale / 2)[amax > 1e-30].all()


@pytest.mark.parametrize("broken", [float("inf"), float("-inf"), float("nan"), -float("nan")])
def test_mxfp8_columns_padding_and_broken_blocks(broken):
    x = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mxfp8.quantize_dequantize(x, dim=-2), mxfp8.quantize_dequantize(x.t()).t())
    assert (mxfp8.quantize_dequantize(x) - x).abs().max() <= x.abs().max() / 16
    assert torch.equal(mxfp8.quantize_dequantize(torch.zeros(2, 40)), torch.zeros(2, 40))
    x[3, 40] = broken
    y = mxfp8.quantize_dequantize(x)
    assert y[3, 32:].isnan().all()
    assert y[3, :32].isfinite().all()
    with pytest.raises(ValueError, match="dimension 1"):
        mxfp8.quantize_dequantize(x, dim=1)
    with pytest.raises(ValueError, match="multiple of 32"):
        mxfp8.quantize(x)


@settings(max_examples=60, deadline=None)
@given(x=tensors())
def test_fp8_is_a_cast_in_units_of_the_scale(x):
    elements, scale = fp8.quantize(x)
    amax = x.float().abs().max()
    if amax > 0:
        assert float(scale) == float(amax / 448)
        assert elements.float().abs().max() == 448
    assert torch.equal(bits(fp8.quantize_dequantize(x)), bits(fp8.dequantize(elements, scale, x.dtype)))
    assert ((fp8.dequantize(elements, scale) - x.float()).abs() <= x.float().abs() / 16 + scale * 2.0**-10).all()


@settings(max_examples=60, deadline=None)
@given(x=tensors())
def test_fp8_of_gradients_is_the_nearest_of_e5m2s_values(x):
    """All 253 finite codes, in float64, times the scale."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e5m2).double()
    scale = x.float().abs().max() / 57344
    values = codes[codes.isfinite()].unique() * (scale.double() if scale > 0 else 1.0)
    y, x = fp8.quantize_dequantize_gradient(x.float()).double().flatten(), x.double().flatten()
    nearest = (x[:, None] - values).abs().amin(1)
    assert ((y - x).abs() <= nearest + x.abs() * 2.0**-22 + scale * 2.0**-38 + 2.0**-149).all()  # float32 ends there


def test_fp8_of_a_stack_is_that_of_each():
    stack = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0, 0.0])[:, None, None]
    assert torch.equal(fp8.quantize_dequantize_each(stack), torch.stack([fp8.quantize_dequantize(each) for each in stack]))


def test_fp8_saturates_at_a_calibrated_amax():
    x = torch.tensor([1.0, -5.0, 0.3])
    assert torch.equal(fp8.quantize_dequantize(x, amax=torch.tensor(2.0))[:2], torch.tensor([1.0, -2.0]))
    assert torch.equal(fp8.quantize_dequantize(torch.zeros(3)), torch.zeros(3))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 20), columns=st.integers(1, 70), seed=st.integers(0, 1000))
def test_hadamard_keeps_products(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(n, columns, generator=generator, dtype=torch.float64) for n in (rows, 9))
    product = hadamard.transform(x, seed=seed) @ hadamard.transform(w, seed=seed).t()
    torch.testing.assert_close(product, x @ w.t())
    columnwise = hadamard.transform(x.t().contiguous(), dim=-2, seed=seed)
    torch.testing.assert_close(columnwise, hadamard.transform(x, seed=seed).t())


def test_hadamard_matrix_is_orthogonal_flat_and_seeded():
    h = hadamard.matrix(0, torch.float32, torch.device("cpu"))
    assert torch.equal(h @ h.t(), torch.eye(16))
    assert (h.abs() == 0.25).all()
    assert not torch.equal(h, hadamard.matrix(1, torch.float32, torch.device("cpu")))
    with pytest.raises(ValueError, match="Hadamard"):
        hadamard.transform(torch.ones(16), dim=-2)
