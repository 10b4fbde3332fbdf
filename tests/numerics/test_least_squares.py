"""The scale search finds what trying all 126 scales finds, and what ModelOpt's own search finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings

from stagecraft.numerics import nvfp4
from stagecraft.numerics.least_squares import best_scales, candidates
from tests.numerics.tensors import make, tensors


def squared_error(x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Float64 error per block of storing `x` with these block scales."""
    codes, _, tensor_scale = nvfp4.quantize(x, scales=scales)
    stored = nvfp4.dequantize(codes, scales, tensor_scale)
    return ((x.double() - stored.double()) ** 2).unflatten(-1, (-1, 16)).sum(-1)


@settings(max_examples=25, deadline=None)
@given(x=tensors())
def test_no_scale_is_better(x):
    x = x.float()
    assume(float(x.abs().max()) > 1e-30)
    best = squared_error(x, best_scales(x))
    shape = (*x.shape[:-1], x.shape[-1] // 16)
    for candidate in candidates(x.device):
        other = squared_error(x, torch.full(shape, float(candidate)).to(torch.float8_e4m3fn))
        assert (best <= other * (1 + 1e-5) + 1e-300).all()


@pytest.mark.parametrize("kind", ["normal", "heavy", "zeros", "subnormal scales"])
@pytest.mark.parametrize("seed", [0, 1])
def test_scales_are_modelopts(kind, seed):
    """Against the 126 passes of `NVFP4MSECalibrator`, over the CPU arithmetic of its static quantiser."""
    from components.quantize import modelopt_cpu

    modelopt_cpu.load()
    from modelopt.torch.quantization.calib.mse import MseCalibrator, NVFP4MSECalibrator

    x = make(kind, torch.float32, 64, 128, seed)
    blocks, amax = x.view(-1, 16), x.abs().max()

    def fake_quant(values, block_amax):
        return modelopt_cpu.static_fake_quant(values, block_amax, amax)

    calibrator = NVFP4MSECalibrator(blocks.abs().amax(1, keepdim=True), amax, axis=0, quant_func=fake_quant)
    MseCalibrator.collect(calibrator, blocks)
    theirs = MseCalibrator.compute_amax(calibrator).flatten() / amax * 448
    assert torch.equal(best_scales(x).float().flatten(), theirs.round(decimals=5).to(torch.float8_e4m3fn).float())


def test_error_is_well_below_that_of_the_largest_magnitude():
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    _, by_amax, _ = nvfp4.quantize(x)
    assert squared_error(x, best_scales(x)).sum() < 0.85 * squared_error(x, by_amax).sum()
