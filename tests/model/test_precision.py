"""The recipes: what megatron-core and its Transformer Engine layers read in them, on every pipeline stage, and what the ladder says."""

from types import SimpleNamespace

import stagecraft.megatron_cpu  # noqa: F401

import pytest
import torch
from megatron.core.extensions.transformer_engine import TEQuantizationParams
from megatron.core.quantization.quant_config import MatchContext, RecipeConfig
from megatron.core.quantization.utils import get_quant_config_or_none

from stagecraft.contract.errors import UserError
from stagecraft.contract.params import load
from stagecraft.model.build import build_model, transformer_config
from stagecraft.model.classes import class_of, linear_layers
from stagecraft.model.hardware import Hardware
from stagecraft.model.ladder import check, ladder, refuse_emulation, resolve
from stagecraft.model.precision import PRECISIONS, RECIPES, as_yaml, format_of, recipe
from stagecraft.model.stage_recipe import StageRecipe
from tests.architectures import tiny

CPU = Hardware("CPU", None, False)
HOPPER, BLACKWELL = Hardware("H100", (9, 0), False), Hardware("B200", (10, 0), True)


def super_120b():
    from components.pretrain.params import Params

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGECRAFT_PARAMS", "params/super-120b.yaml")
        return load(Params, "pretrain").architecture


@pytest.mark.parametrize("name", PRECISIONS)
def test_transformer_engine_parses_every_config_of_the_file(tmp_path, name):
    """What is written for a cluster, read back by the two upstream classes that read it there."""
    path = tmp_path / "recipe.yaml"
    path.write_text(as_yaml(recipe(tiny(), name)))
    read = RecipeConfig.from_yaml_file(str(path))
    for layer in linear_layers(tiny(), mtp=True):
        matched = get_quant_config_or_none(layer, read)
        training = TEQuantizationParams.parse_from_config(matched).training_recipe
        expected = {"nvfp4": ("nvfp4", None), "mxfp8": (None, "mxfp8"), "fp8": (None, "tensorwise")}.get(format_of(matched), (None, None))
        assert (training.fp4_quantization_recipe, training.fp8_quantization_recipe) == expected
        # Without it Transformer Engine ignores the format, as no autocast is entered around the model.
        assert training.override_nonquantized_autocast == (expected != (None, None))


def test_an_unresolved_file_is_refused_by_megatron_core():
    with pytest.raises(NotImplementedError, match="last_layers"):
        RecipeConfig.from_yaml_file(str(RECIPES / "nvfp4.yaml"))


def test_the_papers_exceptions_at_120b():
    """arXiv 2604.12374, section 2: 14 of 88 layers in BF16, of the others the Mamba and expert products alone in low precision."""
    found = {}
    engine = StageRecipe(super_120b(), "nvfp4")
    for path in linear_layers(super_120b(), mtp=True):
        late = path.startswith("decoder.layers.") and int(path.split(".")[2]) >= 74
        found.setdefault((late, class_of(path)), set()).add(engine.match_to_config_key(MatchContext(path, None)))
    expected = {"Mamba input": "nvfp4", "Mamba output": "mxfp8", "routed experts": "nvfp4", "shared expert": "nvfp4", "QKV": "bf16",
                "attention output": "bf16", "latent projections": "bf16", "router": "fp32", "embedding": "bf16", "head": "bf16",
                "MTP block": "bf16"}
    for (late, name), formats in found.items():
        assert formats == {"fp32" if name == "router" else "bf16" if late else expected[name]}, (late, name)
    assert {name for _, name in found} == expected.keys()


@pytest.mark.parametrize("name", PRECISIONS)
def test_every_layer_of_the_model_computes_in_the_recipes_format(name):
    shapes = tiny(hybrid_override_pattern="M*E" * 3, mamba_num_heads=16)
    config = transformer_config(shapes, precision=name, mtp_depths=2)
    model = build_model(shapes, config, 64)
    check(model, config.quant_recipe)
    matrices = {path for path, module in model.named_modules()
                if class_of(path) and any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))}
    assert matrices == set(linear_layers(shapes, mtp=True))


def test_a_layer_without_formats_is_named():
    shapes = tiny()
    config = transformer_config(shapes, precision="nvfp4-everywhere")
    model = build_model(shapes, config, 64)
    model.decoder.layers[0].mixer.in_proj.precision = None
    with pytest.raises(UserError, match=r"decoder.layers.0.mixer.in_proj computes in its own dtype, the recipe says nvfp4"):
        check(model, config.quant_recipe)


def test_the_second_pipeline_stage_knows_which_layers_are_last():
    """megatron-core numbers the layers of each stage from 0; the last layer of 12 is `decoder.layers.5` on the second of two stages."""
    shapes = tiny(hybrid_override_pattern="M*E" * 4)
    engine = StageRecipe(shapes, "nvfp4")
    engine.layer_offset = 6
    keys = [get_quant_config_or_none(f"decoder.layers.{at}.mlp.experts", engine).config_key for at in range(6)]
    assert keys == ["nvfp4"] * 4 + ["bf16"] * 2
    assert get_quant_config_or_none("mtp.layers.0.eh_proj", engine).config_key == "bf16"


def test_what_cannot_be_done_is_an_error():
    def asked(evaluation=None, **training):
        config = {"training_recipe": training, "evaluation_recipe": evaluation or {}}
        return SimpleNamespace(config=config, match_input=SimpleNamespace(module_path="decoder.layers.0.mixer.in_proj"))

    assert format_of(asked(fp4_quantization_recipe="nvfp4", override_nonquantized_autocast=True)) == "nvfp4"
    for other in ({"fp8_quantization_recipe": "blockwise"}, {"fp8_quantization_recipe": "tensorwise"}):  # E4M3 alone is not "hybrid"
        with pytest.raises(ValueError, match="in_proj: no emulation of"):
            format_of(asked(**other, override_nonquantized_autocast=True))
    with pytest.raises(ValueError, match="would ignore"):
        format_of(asked(fp4_quantization_recipe="nvfp4"))
    with pytest.raises(ValueError, match="evaluation is not quantised"):
        format_of(asked(evaluation={"fp8_quantization_recipe": "mxfp8"}))
    with pytest.raises(ValueError, match="precision 'int3' is unknown"):
        recipe(tiny(), "int3")


def test_the_ladder_on_three_machines():
    def actual(hardware, dtype):
        rungs = ladder(resolve(tiny(hybrid_override_pattern="M*E" * 3, mamba_num_heads=16), "nvfp4", hardware, mtp=True, dtype=dtype))
        return {(rung.layer_class, rung.requested): (rung.layers, rung.actual) for rung in rungs}

    cpu, hopper, blackwell = actual(CPU, torch.float32), actual(HOPPER, torch.bfloat16), actual(BLACKWELL, torch.bfloat16)
    assert cpu["Mamba input", "nvfp4"] == (3, "nvfp4 emulated, products in float32")
    assert hopper["Mamba output", "mxfp8"] == (3, "mxfp8 emulated, products in bfloat16")
    assert blackwell["Mamba output", "mxfp8"] == (3, "mxfp8 in hardware")
    assert blackwell["routed experts", "nvfp4"] == (2, "nvfp4 in hardware")
    assert blackwell["routed experts", "bf16"] == (1, "bfloat16")  # the last layers
    assert blackwell["router", "fp32"] == cpu["router", "fp32"] == (4, "float32")  # MTP's too
    assert cpu["head", "bf16"] == (1, "float32")
    assert Hardware("B200", (10, 0), False).multiplies("nvfp4") is False  # our own layers on a Blackwell GPU emulate
    with pytest.raises(UserError, match=r"precision: H100 has no nvfp4 products \(Mamba input\), and Transformer Engine emulates none"):
        actual(Hardware("H100", (9, 0), True), torch.bfloat16)


def test_hopper_has_fp8():
    rungs = ladder(resolve(tiny(mamba_num_heads=16), "fp8", Hardware("H100", (9, 0), True), mtp=True, dtype=torch.bfloat16))
    assert {rung.actual for rung in rungs if rung.requested == "fp8"} == {"fp8 in hardware"}
    refuse_emulation(rungs, Hardware("H100", (9, 0), True))


def test_emulation_is_refused_with_one_line_where_the_profile_rules_it_out():
    for hardware, refused in ((CPU, True), (HOPPER, True), (BLACKWELL, False)):
        rungs = ladder(resolve(tiny(mamba_num_heads=16), "nvfp4", hardware, mtp=False, dtype=torch.bfloat16))
        if refused:
            with pytest.raises(UserError, match=rf"precision: nvfp4 \(Mamba input\) would be emulated on {hardware.name}"):
                refuse_emulation(rungs, hardware)
        else:
            refuse_emulation(rungs, hardware)
    refuse_emulation(ladder(resolve(tiny(), "bf16", CPU, mtp=True, dtype=torch.float32)), CPU)
