"""FLOPs against PyTorch's own counter on models that transformers builds, and on our chunked scan."""

from dataclasses import asdict, replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import NemotronHConfig, NemotronHForCausalLM

from stagecraft.model.mamba import chunked_scan
from stagecraft.planning.architecture import Attention, Model, Scan, nemotron_h
from stagecraft.planning.flops import forward_flops, scan_flops, training_flops
from tests.architectures import architecture
from tests.planning.models import SUPER

KEYS = NemotronHConfig().to_dict()


def counted(pattern: str, length: int) -> tuple[dict[str, float], dict[str, float]]:
    """Forward FLOPs of a row of tokens: by PyTorch, by operator of PyTorch; by the planner, by its own."""
    shapes = architecture(hybrid_override_pattern=pattern, num_nextn_predict_layers=0)
    config = {name: value for name, value in asdict(shapes).items() if name in KEYS or "pattern" in name}
    model = NemotronHForCausalLM(NemotronHConfig(**config, attn_implementation="sdpa", experts_implementation="eager")).eval()
    tokens = torch.randint(0, shapes.vocab_size, (1, length))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the fused kernels are not counted
        model(tokens, use_cache=False)
    theirs = {operator.__name__: flops for operator, flops in counter.get_flop_counts()["Global"].items()}
    return theirs, {name: length * flops for name, flops in forward_flops(nemotron_h(shapes), length).items()}


@pytest.mark.parametrize("pattern", ["M", "E", "*", "M*EM*E"])
def test_products_are_those_of_the_real_model(pattern):
    theirs, ours = counted(pattern, 48)
    assert theirs["mm"] == sum(flops for name, flops in ours.items() if name not in ("attention core", "scan", "convolution"))
    if "M" in pattern:
        assert theirs["convolution"] == ours["convolution"] / 48 * 51  # transformers pads by three tokens and cuts them off


def test_causal_attention_is_half_of_the_square_that_pytorch_counts():
    theirs, ours = counted("*", 64)
    assert ours["attention core"] == theirs["bmm"] / 2 * 65 / 64


def test_the_scan_counts_as_pytorch_counts_it():
    heads, dim, state, groups, chunk, length = 4, 8, 16, 2, 16, 64
    x, dt = torch.randn(1, length, heads, dim), torch.rand(1, length, heads)
    b, c = torch.randn(2, 1, length, groups, state)
    with FlopCounterMode(display=False) as counter:
        chunked_scan(x, dt, -torch.rand(heads), b, c, torch.rand(heads), chunk)
    carried = 2 * (length // chunk) ** 2 * heads * dim * state  # our sum over chunks, which a kernel does as a recurrence
    core = Scan(heads, dim, state, groups, chunk, channels=0, kernel=4)
    assert counter.get_total_flops() == length * scan_flops(core, length) + carried


def test_windows_bound_what_a_token_sees():
    core = Attention(4, 2, 8, window=16)
    assert core.mean_seen(100) == sum(min(position, 16) for position in range(1, 101)) / 100
    assert replace(core, window=None).mean_seen(100) == 50.5


def test_the_published_step_counts_two_prediction_depths():
    """873 TFLOP/s at 10,308 tokens/s are 84.7 GFLOP per token."""
    published = 873e12 / 10308
    errors = {depths: sum(training_flops(SUPER, 8192, depths).values()) / published - 1 for depths in (0, 1, 2)}
    assert abs(errors[2]) < 0.012 and errors[0] < -0.1 and errors[1] < -0.04


def test_a_backward_pass_is_two_forward_passes():
    model = Model("m", 8, 16, SUPER.layers[:3])
    assert sum(training_flops(model, 64).values()) == 3 * sum(forward_flops(model, 64).values())
