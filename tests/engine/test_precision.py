"""Which products are rounded when the model is used, to what, seen at the products themselves; the ladder's words against them."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from megatron.core.quantization.quant_config import MatchContext

from components.pretrain.params import Params
from components.pretrain.train import announce, built
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import load
from stagecraft.model import layers, products
from stagecraft.model.classes import class_of, linear_layers
from stagecraft.model.experts import GroupedExperts
from stagecraft.model.precision import PRECISIONS, format_of
from stagecraft.model.stage_recipe import StageRecipe
from tests.architectures import tiny
from tests.engine.test_trainer import batch, new_trainer

SHAPES = tiny(hybrid_override_pattern="M*E" * 2)


@pytest.fixture
def rounded(monkeypatch):
    """(class of layers, operand, format) of all roundings, counted."""
    seen, inner = Counter(), products._round

    def spy(x, precision, layer, role, **options):
        seen[layer, role, precision] += 1
        return inner(x, precision, layer, role, **options)

    monkeypatch.setattr(products, "_round", spy)
    return seen


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_rounds_the_operands_of_the_layers_that_the_recipe_names_and_a_held_out_loss_none(rounded, monkeypatch, precision):
    monkeypatch.setattr("tests.engine.test_trainer.tiny", lambda: SHAPES)
    trainer, recipe = new_trainer(precision=precision, mtp_depths=1), StageRecipe(SHAPES, precision)
    trainer.loss(batch(0))
    assert not rounded
    trainer.step([batch(0)])
    expected = Counter()
    for path in linear_layers(SHAPES, mtp=True):
        if wanted := format_of(recipe.match(MatchContext(path, None))):
            expected[class_of(path), wanted] += 2 if path.endswith("mlp.experts") else 1  # up and down
    for role in ("activations", "gradients", "activations of weight gradients", "gradients of weight gradients"):
        assert Counter({(layer, precision): count for (layer, at, precision), count in rounded.items() if at == role}) == expected, role
    assert bool(expected) == (precision != "bf16")


def test_routers_compute_in_float32_where_the_model_is_bfloat16():
    trainer, seen = new_trainer(precision="nvfp4", dtype=torch.bfloat16), []
    for path, module in trainer.module.named_modules():
        if class_of(path) == "router" and hasattr(module, "gating"):
            inner = module.gating
            module.gating = lambda x, inner=inner, weight=module.weight: seen.append((x, weight.detach().clone(), inner(x))) or seen[-1][2]
    trainer.step([batch(0)])
    assert len(seen) == 3  # a layer's and two depths' of MTP
    for x, weight, logits in seen:
        exact = x.detach().double() @ weight.double().t()
        assert logits.dtype == torch.float32
        assert (logits - exact).abs().max() < 1e-5 * exact.abs().max()  # bfloat16 leaves 4e-3


@pytest.fixture
def params(monkeypatch):
    monkeypatch.setenv("STAGECRAFT_PARAMS", "params.yaml")
    return replace(load(Params, "pretrain"), architecture=SHAPES, precision="nvfp4", processes=1)


@pytest.mark.parametrize("kind", [layers.DuplicatedLinear, layers.QuantizedRowParallelLinear, GroupedExperts])
def test_a_stage_whose_layers_know_no_formats_does_not_start(params, monkeypatch, kind):
    monkeypatch.setattr(kind, "finish_init", lambda self, quant_config: None, raising=False)
    with pytest.raises(UserError, match="computes in its own dtype, the recipe says"):
        built(replace(params, precision="nvfp4-everywhere"), params.layout)


def test_a_stage_whose_routers_are_not_in_float32_does_not_start(params, monkeypatch):
    from stagecraft.model import build

    inner = build.TransformerConfig
    monkeypatch.setattr(build, "TransformerConfig", lambda **options: inner(**{**options, "moe_router_dtype": None}))
    with pytest.raises(UserError, match="router does not compute in float32"):
        built(params, params.layout)


def test_a_stage_that_may_not_emulate_does_not_start(params):
    trainer = built(params, params.layout)
    announce(params, trainer, None)
    with pytest.raises(UserError, match=r"nvfp4 \(Mamba input\) would be emulated on .*emulate: true"):
        announce(replace(params, emulate=False), trainer, None)
