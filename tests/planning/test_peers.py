"""Published models: our layers hold what transformers' models hold; formats and serving figures are the report's."""

import stagecraft.megatron_cpu  # noqa: F401  # megatron-core imports with it

import pytest
from megatron.core.quantization.quant_config import MatchContext, RecipeConfig
from transformers import GptOssConfig, GptOssForCausalLM, Qwen3_5MoeForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeTextConfig

from benchmarks.peers import MODELS, build, peer
from stagecraft.contract.errors import UserError
from stagecraft.model.precision import format_of, recipe
from stagecraft.planning.formats import formats
from stagecraft.planning.parameters import count
from stagecraft.planning.serving import cache_bytes_per_token, fixed_bytes
from tests.planning.models import LAPTOP, LAPTOP_SHAPES, SUPER, SUPER_SHAPES

COMMON = {"num_hidden_layers": 4, "hidden_size": 48, "vocab_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
          "num_experts_per_tok": 2}
GATED = {"num_experts": 6, "moe_intermediate_size": 24}
SMALL = {
    "gpt_oss": (GptOssForCausalLM, GptOssConfig, {**COMMON, "num_local_experts": 6, "intermediate_size": 40, "sliding_window": 8}, {}),
    "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, {**COMMON, **GATED}, {}),
    "qwen3_5_moe": (Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig, {
        **COMMON, **GATED, "shared_expert_intermediate_size": 32, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4}, {"full_attention_interval": 4}),
}


@pytest.mark.parametrize("family", SMALL)
def test_a_family_holds_what_the_real_model_holds(family):
    real, config, shapes, ours = SMALL[family]
    model = real(config(**shapes))
    counts = count(build(family, {**shapes, **ours}, family))
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    assert counts.routed == sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)


def test_published_totals():
    totals = {name: round(count(peer(name)).total / 1e9, 2) for name in ("gpt-oss-120b", "qwen3.5-122b-a10b", "qwen3-30b-a3b",
                                                                           "qwen3-235b-a22b", "nemotron-3-nano")}
    assert totals == {"gpt-oss-120b": 116.83, "qwen3.5-122b-a10b": 122.11, "qwen3-30b-a3b": 30.53, "qwen3-235b-a22b": 235.09,
                      "nemotron-3-nano": 31.58}


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
