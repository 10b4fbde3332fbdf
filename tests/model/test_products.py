"""Products in a recipe's precision: what they should be by the formulas, expert by expert, and which layer computes in what."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecraft.model.build import build_model, transformer_config
from stagecraft.model.products import NOISE, GroupedProduct, LinearProduct, set_noise
from stagecraft.numerics import hadamard, nvfp4
from tests.architectures import architecture


def gradients(function, *tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    y = function(*leaves)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def test_without_a_format_the_product_is_the_linear_layer():
    x, w = torch.randn(3, 5, 48), torch.randn(20, 48)
    for ours, theirs in zip(gradients(lambda x, w: LinearProduct.apply(x, w, None), x, w), gradients(torch.nn.functional.linear, x, w)):
        torch.testing.assert_close(ours, theirs)


def test_grouped_product_is_one_linear_layer_per_expert():
    x, w, bounds = torch.randn(40, 16), torch.randn(4, 24, 16), [0, 7, 7, 30, 40]

    def separate(x, w):
        return torch.cat([x[start:end] @ w[expert].t() for expert, (start, end) in enumerate(pairwise(bounds))])

    for ours, theirs in zip(gradients(lambda x, w: GroupedProduct.apply(x, w, bounds, None), x, w), gradients(separate, x, w)):
        torch.testing.assert_close(ours, theirs)


BOUNDS = [0, 32, 32, 128]  # of three experts' rows


def eighths(seed, *shape):
    """Multiples of 1/8 of very different magnitudes, of which sixteen add up exactly in float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-40, 41, shape, generator=generator) / 8 * 2.0 ** torch.randint(-2, 3, shape, generator=generator)


def three_products(xq, wq, dyq, w_for_dx, dy_for_dw, x_for_dw):
    """The formulas in float64: y, dx and dw of the rounded operands, expert by expert where the weights are of several."""
    xq, wq, dyq, w_for_dx, dy_for_dw, x_for_dw = (t.double() for t in (xq, wq, dyq, w_for_dx, dy_for_dw, x_for_dw))
    if wq.dim() == 2:
        return xq @ wq.t(), dyq @ w_for_dx, dy_for_dw.t() @ x_for_dw
    parts = [(expert, slice(*bounds)) for expert, bounds in enumerate(pairwise(BOUNDS))]
    return (torch.cat([xq[rows] @ wq[e].t() for e, rows in parts]), torch.cat([dyq[rows] @ w_for_dx[e] for e, rows in parts]),
            torch.stack([dy_for_dw[rows].t() @ x_for_dw[rows] for _, rows in parts]))


def products(x, w, dy, precision):
    """What the layers compute: y, dx and dw."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = LinearProduct.apply(x, w, precision) if w.dim() == 2 else GroupedProduct.apply(x, w, BOUNDS, precision)
    y.backward(dy)
    return y.detach(), x.grad, w.grad


@pytest.mark.parametrize("experts", [(), (3,)], ids=["linear", "grouped"])
@settings(max_examples=10, deadline=None)
@given(step=st.integers(0, 2**20), rank=st.integers(0, 2**10), seed=st.integers(0, 2**20))
def test_nvfp4_products_are_the_formulas(experts, step, rank, seed):
    """Q(x) Q(w)^T, Q(dy) Q(w) and Q(H^T dy)^T Q(H^T x): tiles for w, gradients rounded stochastically, twice, H along the rows."""
    x, w, dy = eighths(seed, 128, 64), eighths(seed + 1, *experts, 48, 64), eighths(seed + 2, 128, 48)
    set_noise(step, rank)
    first, second = NOISE.next(), NOISE.next()
    h = torch.block_diag(*[hadamard.matrix(0, torch.float64, torch.device("cpu"))] * 8)
    wq = nvfp4.quantize_dequantize(w, two_dimensional=True)
    expected = three_products(
        nvfp4.quantize_dequantize(x), wq, nvfp4.quantize_dequantize(dy, stochastic=True, seed=first), wq,
        nvfp4.quantize_dequantize((h.t() @ dy.double()).float(), dim=-2, stochastic=True, seed=second),
        nvfp4.quantize_dequantize((h.t() @ x.double()).float(), dim=-2))
    set_noise(step, rank)
    for ours, theirs in zip(products(x, w, dy, "nvfp4"), expected):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("experts", [(), (3,)], ids=["linear", "grouped"])
def test_mxfp8_products_are_of_modelopts_values(experts):
    """Every operand in blocks of 32 along the dimension that is summed over."""
    from components.quantize import modelopt_cpu

    modelopt_cpu.load()
    from modelopt.torch.quantization.qtensor.mxfp8_tensor import MXFP8QTensor

    def rounded(tensor, dim):
        tensor = tensor.transpose(-1, dim).contiguous()
        elements, scale = MXFP8QTensor.quantize(tensor)
        return elements.dequantize(scale=scale).transpose(-1, dim)

    x, w, dy = eighths(0, 128, 64), eighths(1, *experts, 48, 64), eighths(2, 128, 48)
    expected = three_products(rounded(x, -1), rounded(w, -1), rounded(dy, -1), rounded(w, -2), rounded(dy, -2), rounded(x, -2))
    for ours, theirs in zip(products(x, w, dy, "mxfp8"), expected):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-3)


def test_fp8_multiplies_e4m3_values_and_e5m2_gradients():
    def cast(tensor, dtype):
        scale = tensor.abs().max() / torch.finfo(dtype).max
        return (tensor / scale).to(dtype).float() * scale

    x, w, bounds = torch.randn(40, 64), torch.randn(3, 48, 64) * torch.tensor([1.0, 100.0, 0.01])[:, None, None], [0, 8, 8, 40]
    dy = torch.linspace(-1, 1, 40 * 48).view(40, 48)
    xq, dyq = cast(x, torch.float8_e4m3fn), cast(dy, torch.float8_e5m2)
    wq = [cast(each, torch.float8_e4m3fn) for each in w]
    parts = [(wq[expert], slice(start, end)) for expert, (start, end) in enumerate(pairwise(bounds))]
    expected = (torch.cat([xq[rows] @ each.t() for each, rows in parts]), torch.cat([dyq[rows] @ each for each, rows in parts]),
                torch.stack([dyq[rows].t() @ xq[rows] for _, rows in parts]))
    for ours, theirs in zip(gradients(lambda x, w: GroupedProduct.apply(x, w, bounds, "fp8"), x, w), expected):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(gradients(lambda x, w: LinearProduct.apply(x, w, "fp8"), x, w[0]),
                            (xq @ wq[0].t(), dyq @ wq[0], dyq.t() @ xq)):
        torch.testing.assert_close(ours, theirs)


def test_noise_repeats_with_step_and_rank_only():
    x, w = torch.randn(32, 64), torch.randn(16, 64)

    def dx(step, rank):
        set_noise(step, rank)
        return gradients(lambda x, w: LinearProduct.apply(x, w, "nvfp4"), x, w)[1]

    assert torch.equal(dx(3, 1), dx(3, 1))
    assert not torch.equal(dx(3, 1), dx(4, 1)) and not torch.equal(dx(3, 1), dx(3, 0))


def test_the_recipe_keeps_its_exceptions():
    shapes = architecture(hybrid_override_pattern="M*E" * 7, n_routed_experts=4)
    model = build_model(shapes, transformer_config(shapes, precision="nvfp4", mtp_depths=2), 64)
    formats = {name: module.precision for name, module in model.named_modules() if hasattr(module, "precision")}
    assert formats["decoder.layers.0.mixer.in_proj"] == "nvfp4"
    assert formats["decoder.layers.0.mixer.out_proj"] == "mxfp8"
    assert formats["decoder.layers.2.mlp.experts"] == formats["decoder.layers.2.mlp.shared_experts.linear_fc1"] == "nvfp4"
    kept = [name for name in formats if "self_attention" in name or name.startswith("mtp.")]
    kept += [name for name in formats if name.startswith("decoder.layers.") and int(name.split(".")[2]) >= 17]  # the last 15% of 21: 4
    assert kept and all(formats[name] is None for name in kept)
    assert formats["decoder.layers.15.mixer.in_proj"] == "nvfp4"
