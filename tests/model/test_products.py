"""Products in a recipe's precision: what they should be by the formulas, expert by expert, and which layer computes in what."""

from itertools import pairwise

import torch

from stagecraft.model.build import build_model, transformer_config
from stagecraft.model.products import GroupedProduct, LinearProduct, set_noise
from stagecraft.numerics import nvfp4
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


def test_nvfp4_forward_multiplies_the_rounded_operands():
    x, w = torch.randn(32, 64), torch.randn(48, 64)
    expected = nvfp4.quantize_dequantize(x) @ nvfp4.quantize_dequantize(w, two_dimensional=True).t()
    torch.testing.assert_close(LinearProduct.apply(x, w, "nvfp4"), expected)
    assert (expected - x @ w.t()).norm() > 0.05 * expected.norm()


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


def test_nvfp4_gradients_are_those_of_the_product_on_average():
    torch.manual_seed(0)
    x, w = torch.randn(64, 64), torch.randn(32, 64)
    draws = []
    for step in range(200):
        set_noise(step, 0)
        draws.append(gradients(lambda x, w: LinearProduct.apply(x, w, "nvfp4"), x, w)[1:])
    wq = nvfp4.quantize_dequantize(w, two_dimensional=True)
    dy = torch.linspace(-1, 1, 64 * 32).view(64, 32)
    mean_dx = torch.stack([dx for dx, _ in draws]).mean(0)
    assert (mean_dx - dy @ wq).norm() < 0.02 * (dy @ wq).norm()
    mean_dw = torch.stack([dw for _, dw in draws]).mean(0)
    assert (mean_dw - dy.t() @ x).norm() < 0.15 * (dy.t() @ x).norm()  # x itself is rounded to nearest


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
