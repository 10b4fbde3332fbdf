"""On a GPU every format has the bits that it has on a CPU, compiled and not."""

import pytest
import torch
from hypothesis import given, settings

from stagecraft.numerics import backend, fp8, hadamard, mxfp8, nvfp4
from tests.numerics.tensors import bits, tensors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FORMATS = {
    "FP8": fp8.quantize_dequantize, "FP8 gradients": fp8.quantize_dequantize_gradient,
    "FP8 each": lambda x: fp8.quantize_dequantize_each(x.unsqueeze(0)), "MXFP8": mxfp8.quantize_dequantize,
    "MXFP8 columns": lambda x: mxfp8.quantize_dequantize(x, dim=-2), "NVFP4": nvfp4.quantize_dequantize,
    "NVFP4 stochastic": lambda x: nvfp4.quantize_dequantize(x, stochastic=True, seed=5),
    "NVFP4 columns": lambda x: nvfp4.quantize_dequantize(x, dim=-2),
    "NVFP4 tiles": lambda x: nvfp4.quantize_dequantize(x, two_dimensional=True),
    "NVFP4 packed": lambda x: nvfp4.dequantize(*nvfp4.quantize(x)),
}


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("name", FORMATS)
def test_bits_are_those_of_a_cpu(name, mode):
    @settings(max_examples=25, deadline=None)
    @given(x=tensors())
    def check(x):
        with backend.use("eager"):
            here = FORMATS[name](x)
        with backend.use(mode):
            there = FORMATS[name](x.cuda()).cpu()
        assert torch.equal(bits(there), bits(here))

    check()


def test_the_hadamard_transform_keeps_products():
    x, w = (torch.randn(64, 48, device="cuda", dtype=torch.float64) for _ in range(2))
    a, b = (hadamard.transform(t, dim=-2) for t in (x, w))
    torch.testing.assert_close(a.t() @ b, x.t() @ w)
