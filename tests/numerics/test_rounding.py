"""Stochastic rounding is unbiased, its noise is uniform, and both are functions of the seed alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from stagecraft.numerics import nvfp4, rounding

DRAWS = 4096


def repeated(values: list[float]) -> torch.Tensor:
    """Rows of one value each; a 6 in every block of 16 keeps the block's scale at 1 in units of the tensor's scale."""
    x = torch.tensor(values).repeat_interleave(DRAWS).view(len(values), -1).clone()
    x[:, ::16] = 6.0
    return x


@pytest.mark.parametrize("seed", [0, 7, -1, 2**40])
def test_mean_is_the_value(seed):
    values = [0.01, 0.25, 0.49, 0.8, 1.2, 1.75, 2.3, 2.9, 3.5, 4.1, 5.0, 5.9, -0.3, -3.3]
    x = repeated(values)
    y = nvfp4.quantize_dequantize(x, stochastic=True, seed=seed)
    is_drawn = (torch.arange(x.shape[1]) % 16 != 0)
    for value, row in zip(values, y[:, is_drawn].double()):
        low, high = row.abs().min(), row.abs().max()
        share = (abs(value) - low) / (high - low)
        deviation = (high - low) * (share * (1 - share)) ** 0.5
        z = (row.abs().mean() - abs(value)) / (deviation / row.numel() ** 0.5)
        assert abs(z) < 4, (value, float(z))
        assert len(row.unique()) == 2
        assert low < abs(value) < high


def test_representable_values_stay():
    x = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 0]).repeat(64)
    for seed in range(5):
        assert torch.equal(nvfp4.quantize_dequantize(x, stochastic=True, seed=seed), x)


def test_no_noise_moves_a_representable_value_or_leaves_the_format():
    """In float32, 3 + (1 - 2^-24) is 4: of 10^7 draws one has such noise, so it is asked for by name."""
    codes = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6])
    for noise in (0.0, 0.5, 1 - 2**-22, 1 - 2**-23, 1 - 2**-24):
        assert torch.equal(rounding.e2m1(codes, torch.full_like(codes, noise)), codes), noise
    assert torch.equal(rounding.e2m1(torch.tensor([7.5, float("inf")]), torch.full((2,), 1 - 2**-24)), torch.tensor([6.0, 6.0]))
    counter = 15_340_575  # whose noise is 1 - 2^-24 with seed 0
    assert rounding.noise(torch.tensor(counter, dtype=torch.int32), rounding.seed_tensor(0, codes.device)) == 1 - 2**-24
    x = torch.full((counter // 16 + 1, 16), 6.0)
    assert nvfp4.quantize_dequantize(x, stochastic=True, seed=0).max() == 6.0


def test_seed_decides_and_nothing_else():
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    first = nvfp4.quantize_dequantize(x, stochastic=True, seed=3)
    torch.rand(10)
    assert torch.equal(first, nvfp4.quantize_dequantize(x, stochastic=True, seed=3))
    assert torch.equal(first, nvfp4.quantize_dequantize(x, stochastic=True, seed=torch.tensor(3)))
    assert not torch.equal(first, nvfp4.quantize_dequantize(x, stochastic=True, seed=4))


def test_noise_is_uniform_and_uncorrelated():
    counter = torch.arange(1 << 18, dtype=torch.int32)
    seeds = [rounding.noise(counter, rounding.seed_tensor(seed, counter.device)).double() for seed in (0, 1, 12345)]
    for draw in seeds:
        assert draw.min() >= 0
        assert draw.max() < 1
        chi2 = ((torch.histc(draw, 256, 0, 1) - 1024) ** 2 / 1024).sum()
        assert abs(chi2 - 255) < 5 * (2 * 255) ** 0.5
        for lag in (1, 16, 128):
            correlation = torch.corrcoef(torch.stack([draw[:-lag], draw[lag:]]))[0, 1]
            assert abs(correlation) * draw.numel() ** 0.5 < 4.5
    assert abs(torch.corrcoef(torch.stack(seeds))[0, 1:]).max() * counter.numel() ** 0.5 < 4.5


SCRIPT = """
import torch; torch.set_num_threads({threads})
from stagecraft.numerics import nvfp4
x = torch.randn(4096, 256, generator=torch.Generator().manual_seed(0))
y = nvfp4.quantize_dequantize(x, stochastic=True, seed=5)
print(hash(y.view(torch.int32).sum(dtype=torch.int64).item()), y.view(torch.int32).roll(1).bitwise_xor(y.view(torch.int32)).sum().item())
"""


def test_threads_do_not_change_the_result():
    outputs = {subprocess.run([sys.executable, "-c", SCRIPT.format(threads=threads)], check=True, capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": str(threads)}).stdout for threads in (1, 2)}
    assert len(outputs) == 1
