"""What components/quantize/modelopt_search.py avoids, seen in ModelOpt as it comes: a failure here means it has been mended."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import NemotronHConfig, NemotronHForCausalLM

from components.quantize import modelopt_cpu
from components.quantize.formats import uniform
from components.quantize.modelopt_search import UNSEARCHED, modelopt_choice
from tests.quantize.test_search import random_programme


@pytest.fixture(scope="module")
def model_and_statistics(tmp_path_factory):
    """AutoQuantize on a model of two experts, with ModelOpt's own rules and accounting."""
    modelopt_cpu.load()
    import modelopt.torch.quantization as mtq

    kinds = ["linear_attention", "full_attention", "moe"]
    model = NemotronHForCausalLM(NemotronHConfig(
        vocab_size=64, hidden_size=32, layers_block_type=kinds, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        ssm_state_size=8, mamba_num_heads=2, mamba_head_dim=16, n_groups=1, chunk_size=8, n_routed_experts=2, num_experts_per_tok=1,
        n_shared_experts=1, moe_intermediate_size=16, moe_shared_expert_intermediate_size=16, moe_latent_size=16, intermediate_size=32))
    batch = torch.arange(16)[None]
    with modelopt_cpu.quiet(tmp_path_factory.mktemp("defects") / "log"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, state = mtq.auto_quantize(
            model.eval(), constraints={"effective_bits": 16.0}, quantization_formats=[uniform("nvfp4"), uniform("fp8")],
            data_loader=[batch], forward_step=lambda model, batch: model(batch, use_cache=False), disabled_layers=UNSEARCHED,
            loss_func=lambda output, batch: output.logits.float().logsumexp(-1).sum(), num_calib_steps=1, num_score_steps=1)
    return model, state["candidate_stats"]


def statistics_of(model_and_statistics, ending):
    model, statistics = model_and_statistics
    (name,) = (name for name in statistics if name.endswith(f"{ending}.quant_recipe"))
    return model.get_submodule(name.removesuffix(".quant_recipe")), statistics[name]


def test_half_of_the_experts_weights_is_not_counted(model_and_statistics):
    experts, statistics = statistics_of(model_and_statistics, "mixer.experts")
    assert statistics["uncompressed_cost"] == experts.down_proj.numel() == (experts.up_proj.numel() + experts.down_proj.numel()) / 2


def test_nvfp4_with_static_scales_costs_four_bits(model_and_statistics):
    projection, statistics = statistics_of(model_and_statistics, "mixer.o_proj")
    assert 16 * statistics["costs"][0] / projection.weight.numel() == 4.0


def test_what_is_not_searched_counts_at_sixteen_bits(model_and_statistics):
    head, statistics = statistics_of(model_and_statistics, "lm_head")
    assert head.weight.dtype == torch.float32
    assert statistics["costs"] == [head.weight.numel()]  # in units of 16 bits


def test_fused_experts_are_scored_at_the_latent_output(model_and_statistics):
    model, _ = model_and_statistics
    mixer = model.model.layers[2].mixer
    assert hasattr(mixer.experts, "_hparams_for_scoring") and not hasattr(mixer, "_hparams_for_scoring")


def test_small_scores_get_a_worse_choice(tmp_path):
    """The same scores in smaller units: the optimum is the same, ModelOpt's choice is not."""
    modelopt_cpu.load()
    programme = random_programme(0, 12, scale=1e-8)
    with modelopt_cpu.quiet(tmp_path / "log"):
        theirs = modelopt_choice(programme, 4.75)
    assert programme.totals(theirs)[0] > 2 * programme.totals(programme.solve(4.75))[0]


def test_kl_div_does_not_minimise_the_sum():
    modelopt_cpu.load()
    from modelopt.torch.quantization.algorithms import AutoQuantizeKLDivSearcher

    programme = random_programme(0, 12)
    groups, searcher = programme.groups(), AutoQuantizeKLDivSearcher()
    searcher.candidate_stats = {
        str(index): {"formats": list(programme.formats), "scores": programme.sensitivities[group].sum(0).tolist(),
                     "costs": programme.costs[group].sum(0).tolist()} for index, group in enumerate(groups)}
    recipes, _ = searcher.run_search_with_stats(5.5)
    choice = {programme.names[member]: recipes[str(index)]["format"] for index, group in enumerate(groups) for member in group}
    sensitivity, cost = programme.totals(choice)
    assert sensitivity > 1.05 * programme.totals(programme.solve(cost))[0]


def test_two_formats_leave_the_list_of_what_is_excluded_out():
    modelopt_cpu.load()
    from modelopt.torch.export.quant_utils import process_layer_quant_config

    layers = {"a.quantization": "fp8", "b.quantization": "nvfp4", "b.awq_block_size": 16, "c.quantization": None}
    assert "exclude_modules" not in process_layer_quant_config(layers)
    del layers["b.quantization"], layers["b.awq_block_size"]
    assert process_layer_quant_config(layers)["exclude_modules"] == ["c*"] or process_layer_quant_config(layers)["exclude_modules"] == ["c"]
