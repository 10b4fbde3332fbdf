"""Compiled kernels give the bits of plain PyTorch for every size, survive a patched `torch.cuda`, and have a fallback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecraft.numerics import backend, fp8, least_squares, mxfp8, nvfp4
from tests.numerics.tensors import bits, tensors

OPERATIONS = {
    "rows": lambda x: nvfp4.quantize_dequantize(x),
    "rows, stochastic": lambda x: nvfp4.quantize_dequantize(x, stochastic=True, seed=11),
    "rows, calibrated": lambda x: nvfp4.quantize_dequantize(x, tensor_amax=torch.tensor(1.5)),
    "columns": lambda x: nvfp4.quantize_dequantize(x, dim=-2),
    "columns, stochastic": lambda x: nvfp4.quantize_dequantize(x, dim=-2, stochastic=True, seed=11),
    "tiles": lambda x: nvfp4.quantize_dequantize(x, two_dimensional=True),
    "tiles, stochastic": lambda x: nvfp4.quantize_dequantize(x, two_dimensional=True, stochastic=True, seed=11),
    "stack": lambda x: nvfp4.quantize_dequantize(torch.stack([x, 3 * x]), two_dimensional=True),
    "mxfp8": mxfp8.quantize_dequantize,
    "fp8": fp8.quantize_dequantize,
    "fp8, gradients": fp8.quantize_dequantize_gradient,
    "least squares": lambda x: least_squares.best_scales(x).float(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_compiled_bits_are_the_eager_ones(name):
    operation = OPERATIONS[name]

    @settings(max_examples=12, deadline=None)
    @given(x=tensors().filter(lambda x: len(x) > 16), more=st.integers(2, 5))
    def check(x, more):
        x = torch.cat([x] * more, -1)  # no dimension of size one: those are variants of their own, as slow to compile
        with backend.use("compiled"):
            compiled = operation(x)
        with backend.use("eager"):
            assert torch.equal(bits(operation(x)), bits(compiled))

    check()


def test_dimensions_of_size_one():
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    with backend.use("compiled"):
        compiled = nvfp4.quantize_dequantize(x)
    with backend.use("eager"):
        assert torch.equal(bits(nvfp4.quantize_dequantize(x)), bits(compiled))


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="unknown backend"), backend.use("fast"):
        pass


def python(script: str, **environment: str) -> str:
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **environment}, check=True)
    return run.stdout + run.stderr


def test_without_a_compiler_it_warns_once_and_goes_on(tmp_path):
    script = ("import torch; from stagecraft.numerics import nvfp4, backend\n"
              "for _ in range(2): y = nvfp4.quantize_dequantize(torch.ones(4, 32))\n"
              "print(backend.name(), bool((y == 1).all()))")
    output = python(script, CXX="/nonexistent/compiler", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert "eager True" in output
    assert output.count("fall back to plain PyTorch") == 1


def test_no_recompilation_and_no_dynamo():
    """However the sizes change, one variant per kind of call; and compiled in a process whose torch.compile is neutralised."""
    script = """
import torch
torch.compile = lambda f=None, **_: f if f is not None else (lambda g: g)
same = lambda *a, **k: None
torch.cuda.current_stream = torch.cuda.synchronize = same
torch.cuda.current_device = lambda: torch.device("cpu")
from stagecraft.numerics import backend, nvfp4
count, original = [], backend._compile
backend._compile = lambda *a: count.append(1) or original(*a)
for n in (16, 48, 640, 33): nvfp4.quantize_dequantize(torch.randn(n, n))
for n in (16, 48, 640, 33): nvfp4.quantize_dequantize(torch.randn(n, 2 * n).t(), dim=-2)
print("variants", len(count), backend.name())
"""
    assert "variants 2 compiled" in python(script).splitlines()  # torch may print more at exit
