"""The benchmark of the architecture's claims: what it compares, how it sums up, and what it refuses before it trains anything."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from benchmarks import architectures
from components.pretrain.params import Params
from stagecraft.contract.params import load

PROFILE = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture(scope="module")
def variants():
    return architectures.variants(load(Params, "pretrain", PROFILE).architecture, 4160)


def test_the_variants_are_of_one_size_and_differ_in_one_thing_each(variants):
    base, attention, plain = variants.values()
    parameters = [architectures.sizes(each)[0] for each in (base, attention, plain)]
    assert max(parameters) < 1.05 * min(parameters)
    assert "M" in base.hybrid_override_pattern and "M" not in attention.hybrid_override_pattern
    assert base.moe_latent_size and plain.moe_latent_size is None
    assert base.hybrid_override_pattern == plain.hybrid_override_pattern and base.n_routed_experts == 2 * plain.n_routed_experts


def test_the_table_has_ratios_on_the_scale_of_logarithms(variants):
    bits = {name: [2.0 + 0.1 * place, 2.1 + 0.1 * place, 2.3 + 0.1 * place] for place, name in enumerate(variants)}
    rates = {name: [[100.0, 400.0, 200.0], [80.0, 90.0, 85.0]] if place == 0 else [[100.0, 100.0, 100.0], [40.0, 45.0, 42.5]]
             for place, name in enumerate(variants)}
    told = io.StringIO()
    Console(file=told, width=200).print(architectures.table_of(variants, bits, rates, [128, 1024]))
    interval = stats.ttest_1samp(np.log([1.0, 4.0, 2.0]), 0).confidence_interval(0.95)
    assert f"2.00 [{np.exp(interval.low):.2f}, {np.exp(interval.high):.2f}]" in told.getvalue()
    assert "+0.1000 [+0.1000, +0.1000]" in told.getvalue()
    assert "2.00 [2.00, 2.00]" in told.getvalue()


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--rounds", "0"], ["--tokens", "1"], ["--lengths", "128", "0"]])
def test_numbers_that_would_fail_after_the_training_are_refused_before_it(wrong, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["architectures", *wrong])
    with pytest.raises(SystemExit) as refused:
        architectures.main()
    assert refused.value.code == 2 and "1 or more" in capsys.readouterr().err
