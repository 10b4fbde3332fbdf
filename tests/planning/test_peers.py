"""Published models: our layers hold what transformers' models hold; formats and serving figures are the report's."""

import stagecraft.megatron_cpu  # noqa: F401  # megatron-core imports with it

import pytest
import torch
from megatron.core.quantization.quant_config import MatchContext, RecipeConfig
from transformers import GptOssConfig, GptOssForCausalLM, Qwen3_5MoeForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeTextConfig

from stagecraft.contract.errors import UserError
from stagecraft.model.precision import format_of, recipe
from stagecraft.planning.formats import formats
from stagecraft.planning.parameters import count
from stagecraft.planning.peers import MODELS, peer
from stagecraft.planning.serving import cache_bytes_per_token, fixed_bytes
from tests.planning.models import LAPTOP, LAPTOP_SHAPES, SUPER, SUPER_SHAPES

QWEN = {"num_hidden_layers": 48, "hidden_size": 3072, "num_attention_heads": 32, "linear_num_value_heads": 64,
        "moe_intermediate_size": 1024, "shared_expert_intermediate_size": 1024}
REAL = {
    "gpt-oss-120b": lambda: GptOssForCausalLM(GptOssConfig()),
    "qwen3.5-122b-a10b": lambda: Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig(**QWEN)),
    "qwen3-30b-a3b": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(
        num_hidden_layers=48, hidden_size=2048, num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128,
        num_experts_per_tok=8, moe_intermediate_size=768, vocab_size=151936)),
}


@pytest.mark.parametrize("name", REAL)
def test_a_peer_holds_what_the_real_model_holds(name):
    with torch.device("meta"):
        model = REAL[name]()
    assert count(peer(name)).total == sum(parameter.numel() for parameter in model.parameters())


def test_every_peer_can_be_read_and_an_unknown_one_is_named():
    for path in MODELS.glob("*.yaml"):
        assert count(peer(path.stem)).total > 1e9
    with pytest.raises(UserError, match=r"no model 'gpt-7'.*known are gpt-oss-120b"):
        peer("gpt-7")


def test_published_active_parameters():
    nano, oss = peer("nemotron-3-nano"), peer("gpt-oss-120b")
    assert round((count(nano).active - nano.embedding) / 1e9, 1) == 3.2
    assert round((count(oss).active - oss.embedding) / 1e9, 2) == 5.13


def test_bytes_of_a_sequence_are_those_of_the_report():
    for model, name, cache, fixed in ((SUPER, "nvfp4", 4096, 86e6), (SUPER, "bf16", 8192, 170e6),
                                      (peer("gpt-oss-120b"), "mxfp4", 18432, 2.4e6),
                                      (peer("qwen3.5-122b-a10b"), "bf16", 24576, 154e6)):
        assert cache_bytes_per_token(model.layers, formats("serving", name)) == cache
        assert fixed_bytes(model, formats("serving", name)) == pytest.approx(fixed, rel=0.02)


@pytest.mark.parametrize(("model", "shapes"), [(SUPER, SUPER_SHAPES), (LAPTOP, LAPTOP_SHAPES)])
def test_the_planned_formats_are_those_the_engine_trains_in(model, shapes):
    """Against the patterns that megatron-core matches with the names of its modules."""
    engine = RecipeConfig.from_config_dict(recipe(shapes, "nvfp4"))
    paths = {"mamba in": "mixer.in_proj", "mamba out": "mixer.out_proj", "qkv": "self_attention.linear_qkv",
             "attention out": "self_attention.linear_proj", "experts up": "mlp.experts", "experts down": "mlp.experts",
             "shared": "mlp.shared_experts.linear_fc1", "latent": "mlp.fc1_latent_proj"}
    planned = formats("training", "nvfp4")
    layers = len(shapes.hybrid_override_pattern)
    for at, layer in enumerate(model.layers):
        for product in layer.products:
            if product.operator in paths:
                path = f"decoder.layers.{at}.{paths[product.operator]}"
                theirs = format_of(engine.match(MatchContext(path, at))) or "bfloat16"
                assert planned.of(product.operator, layer=at, layers=layers) == theirs, path
    for product in (product for layer in model.mtp for product in layer.products):
        assert planned.of(product.operator, mtp=True) == "bfloat16"
