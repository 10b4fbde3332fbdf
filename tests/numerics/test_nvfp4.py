"""NVFP4 against ModelOpt's bits, against the paper's formulas in float64, and against its own promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stagecraft.numerics import nvfp4
from tests.numerics.tensors import bits, make, tensors

GRID = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


@pytest.fixture(scope="module")
def modelopt():
    from components.quantize import modelopt_cpu

    modelopt_cpu.load()
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

    return NVFP4QTensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_inputs_are_as_hard_as_their_names_say(dtype):
    def parts(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = make(kind, dtype, 16, 96, 0)
        _, scales, tensor_scale = nvfp4.quantize(x)
        blocks = x.double().unflatten(-1, (-1, 16)).abs()
        wanted = blocks.amax(-1) / (6 * tensor_scale.double())
        return (blocks / (scales.double() * tensor_scale.double()).unsqueeze(-1)).numpy(), wanted.numpy(), scales.double().numpy()

    ratio, _, _ = parts("ties")
    assert np.isin(ratio, (GRID[1:] + GRID[:-1]) / 2).mean() > 0.2
    _, wanted, scales = parts("scale ties")
    assert (np.abs(wanted - scales) == np.exp2(np.floor(np.log2(wanted)) - 4)).mean() > 0.9  # half a step of three mantissa bits
    _, wanted, scales = parts("subnormal scales")
    assert (scales < 2**-6).mean() > 0.2 and (wanted < 2**-9).any() and (wanted > 2**-6).any()


@settings(max_examples=150, deadline=None)
@given(x=tensors())
def test_bits_are_modelopts(modelopt, x):
    assume(float(x.float().abs().max()) / 2688 > 0)  # of a tensor without a scale ModelOpt makes NaN
    theirs, scales, tensor_scale = modelopt.quantize(x.clone(), 16)
    codes, own_scales, own_tensor_scale = nvfp4.quantize(x)
    assert torch.equal(codes, theirs._quantized_data)
    assert torch.equal(own_scales.view(torch.uint8), scales.view(torch.uint8))
    assert torch.equal(own_tensor_scale, tensor_scale)
    values = theirs.dequantize(dtype=x.dtype, scale=scales, double_scale=tensor_scale, block_sizes={-1: 16})
    assert torch.equal(bits(nvfp4.dequantize(codes, own_scales, own_tensor_scale, x.dtype)), bits(values))
    assert torch.equal(bits(nvfp4.quantize_dequantize(x)), bits(values))


def nearest(value: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(nearest grid value, whether `value` is so close to the middle of two that float32 may decide otherwise)."""
    middle = (grid[1:] + grid[:-1]) / 2
    distance = np.abs(value[..., None] - middle) / middle
    return grid[np.abs(value[..., None] - grid).argmin(-1)], (distance < 1e-5).any(-1)


def blocks_of(x: torch.Tensor, tiles: bool) -> np.ndarray:
    """float64 [blocks, elements], of a matrix whose columns are a multiple of 16: 1 x 16, or 16 x 16 with rows of zeros added."""
    matrix = x.double().numpy()
    if not tiles:
        return matrix.reshape(-1, 16)
    matrix = np.pad(matrix, ((0, -len(matrix) % 16), (0, 0)))
    return matrix.reshape(len(matrix) // 16, 16, -1, 16).swapaxes(1, 2).reshape(-1, 256)


@pytest.mark.parametrize("tiles", [False, True], ids=["1 x 16", "16 x 16"])
@settings(max_examples=60, deadline=None)
@given(x=tensors())
def test_values_are_the_papers(tiles, x):
    """arXiv 2509.25149, appendix C: global scale 6 * 448 / amax, block scale E4M3(amax_b / 6 * global scale)."""
    assume(float(x.float().abs().max()) > 1e-30)
    exact = blocks_of(x, tiles)
    encode = 6 * 448 / np.abs(exact).max()
    e4m3 = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
    amax = np.abs(exact).max(1, keepdims=True)
    scale, unsure = nearest(amax / 6 * encode, e4m3)
    decode = np.where(amax > 0, scale, 1.0) / encode
    value, close = nearest(np.abs(exact) / decode, GRID)
    expected = np.copysign(value * decode, exact)
    got = blocks_of(nvfp4.quantize_dequantize(x.float(), two_dimensional=tiles), tiles)
    sure = ~(close | unsure)
    np.testing.assert_allclose(got[sure], expected[sure], rtol=1e-5, atol=1e-44)
    assert sure.any() or x.numel() < 512


@settings(max_examples=40, deadline=None)
@given(x=tensors(), rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_transposed_weight_has_transposed_values(x, rows, columns):
    weight = x.flatten().repeat(-(-rows * columns // x.numel()))[:rows * columns].view(rows, columns)
    straight = nvfp4.quantize_dequantize(weight, two_dimensional=True)
    turned = nvfp4.quantize_dequantize(weight.t(), two_dimensional=True)
    assert torch.equal(bits(straight), bits(turned.t()))


def test_a_stack_is_quantised_expert_by_expert():
    stack = torch.randn(5, 40, 24, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 5)[:, None, None]
    together = nvfp4.quantize_dequantize(stack, two_dimensional=True)
    for expert, matrix in enumerate(stack):
        assert torch.equal(together[expert], nvfp4.quantize_dequantize(matrix, two_dimensional=True))


@settings(max_examples=30, deadline=None)
@given(x=tensors(), columns=st.integers(1, 50))
def test_columns_are_the_rows_of_the_transpose(x, columns):
    matrix = x.flatten()[:x.numel() // columns * columns].view(-1, columns)
    assume(matrix.numel() > 0)
    assert torch.equal(bits(nvfp4.quantize_dequantize(matrix, dim=-2)), bits(nvfp4.quantize_dequantize(matrix.t()).t()))


@settings(max_examples=30, deadline=None)
@given(x=tensors())
def test_quantising_again_changes_nothing(x):
    assume(float(x.float().abs().max()) > 1e-30)
    once = nvfp4.quantize_dequantize(x.float())
    amax = x.float().abs().max()
    assume(float(once.abs().max()) > 0)
    codes, scales, tensor_scale = nvfp4.quantize(x.float())
    again, _, _ = nvfp4.quantize(once, scales=scales, tensor_scale=tensor_scale)
    assert torch.equal(nvfp4.dequantize(again, scales, tensor_scale), nvfp4.dequantize(codes, scales, tensor_scale))
    assert once.abs().max() <= amax * 1.07  # a block scale is at most half an E4M3 step (1/16) too large


@pytest.mark.parametrize("shape", [(16,), (3, 17), (2, 3, 40), (1, 1), (5, 0)])
def test_any_shape_keeps_its_shape(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    kinds = [{}, {"stochastic": True}] + ([{"dim": -2}, {"two_dimensional": True}] if len(shape) > 1 else [])
    for kind in kinds:
        y = nvfp4.quantize_dequantize(x, **kind)
        assert y.shape == x.shape
        assert y.is_contiguous()
        if x.numel():
            assert (y - x).norm() <= 0.3 * x.norm()


def test_padding_does_not_change_values():
    x = torch.randn(7, 40, generator=torch.Generator().manual_seed(2))
    padded = torch.nn.functional.pad(x, (0, 8))
    assert torch.equal(nvfp4.quantize_dequantize(x), nvfp4.quantize_dequantize(padded)[:, :40])


def test_nothing_becomes_zero_and_broken_becomes_nan():
    assert torch.equal(nvfp4.quantize_dequantize(torch.zeros(4, 32)), torch.zeros(4, 32))
    assert torch.equal(nvfp4.quantize_dequantize(torch.full((4, 32), 1e-43)), torch.zeros(4, 32))
    for broken in (float("nan"), float("inf")):
        x = torch.ones(4, 32)
        x[1, 3] = broken
        assert nvfp4.quantize_dequantize(x).isnan().all()


@settings(max_examples=40, deadline=None)
@given(x=tensors(), dim=st.sampled_from([-1, -2]))
def test_saturated_are_the_elements_beyond_the_largest_code_of_their_block(x, dim):
    assume(float(x.float().abs().max()) > 1e-30)
    count = int(nvfp4.count_saturated(x, dim=dim))
    matrix = x.float() if dim == -1 else F.pad(x.float(), (0, 0, 0, -len(x) % 16)).t()
    _, scales, tensor_scale = nvfp4.quantize(matrix)
    assert count == int((matrix.unflatten(-1, (-1, 16)).abs() / (scales.float() * tensor_scale).unsqueeze(-1) > 6).sum())


def test_saturated_tiles_are_counted_matrix_by_matrix():
    stack = torch.randn(3, 40, 24, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 3)[:, None, None]
    together = int(nvfp4.count_saturated(stack, two_dimensional=True))
    assert together == sum(int(nvfp4.count_saturated(matrix, two_dimensional=True)) for matrix in stack) > 0
    assert int(nvfp4.count_saturated(torch.empty(0, 16), dim=-2)) == 0  # an expert-parallel rank without a token


def test_calibrated_amax_saturates():
    x = torch.full((1, 16), 10.0)
    assert torch.equal(nvfp4.quantize_dequantize(x, tensor_amax=torch.tensor(2.0)), torch.full((1, 16), 2.0))


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="no NVFP4 blocks"):
        nvfp4.quantize_dequantize(torch.ones(4), dim=-2)
    with pytest.raises(ValueError, match="multiple of 16"):
        nvfp4.quantize(torch.ones(4, 20))
    with pytest.raises(ValueError, match="tensor scale"):
        nvfp4.quantize_dequantize(torch.ones(16, 16), two_dimensional=True, tensor_amax=torch.tensor(1.0))
