"""What components/quantize/modelopt_cpu.py works around, seen in ModelOpt as it comes: a failure here means it has been mended."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

AS_IT_COMES = '''
import contextlib, json, sys, warnings
warnings.simplefilter("ignore")
facts = {}
with contextlib.redirect_stdout(sys.stderr):
    import torch
    import modelopt.torch.quantization as mtq
    from modelopt.torch.kernels.quantization import gemm
    from modelopt.torch.quantization import tensor_quant
    from modelopt.torch.quantization.calib.mse import NVFP4MSECalibrator
    from modelopt.torch.export.quant_aware_conversion import build_reverse_name_mapper
    from transformers import NemotronHConfig, NemotronHForCausalLM

    facts["imports"] = [name for name in ("vllm", "megatron") if name in sys.modules]
    facts["triton"] = gemm.IS_AVAILABLE
    try:
        tensor_quant.dynamic_block_quantize_op(torch.ones(2, 16), 16, torch.ones(()), 4, 2, 8, 4)
    except AssertionError as error:
        facts["activations"] = str(error)
    try:
        tensor_quant.static_blockwise_fp4_fake_quant(torch.ones(2, 16), torch.ones(2))
    except RuntimeError as error:
        facts["weights"] = str(error)

    passes = []
    calibrator = NVFP4MSECalibrator(torch.ones(2, 1), torch.ones(()), axis=0, quant_func=lambda x, amax: passes.append(1) or x)
    calibrator.collect(torch.ones(2, 16))
    facts["passes"] = len(passes)

    kinds = ["linear_attention", "full_attention", "moe"]
    model = NemotronHForCausalLM(NemotronHConfig(
        vocab_size=64, hidden_size=32, layers_block_type=kinds, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        ssm_state_size=8, mamba_num_heads=2, mamba_head_dim=16, n_groups=1, chunk_size=8, n_routed_experts=2, num_experts_per_tok=1,
        n_shared_experts=1, moe_intermediate_size=16, moe_shared_expert_intermediate_size=16, moe_latent_size=16, intermediate_size=32))
    facts["names"] = [build_reverse_name_mapper(model)(name) for name in ("model.layers.0.mixer.conv1d", "model.layers.1*")]

    linear = torch.nn.functional.linear
    fp8 = {"quant_cfg": [{"quantizer_name": "*", "enable": False},
                         {"quantizer_name": "*mixer.experts.*quantizer", "enable": True, "cfg": {"num_bits": (4, 3), "axis": None}}],
           "algorithm": "max"}
    mtq.quantize(model, fp8, lambda model: model(torch.arange(16)[None]))
    class Fail(torch.nn.Module):
        def forward(self, x):
            raise ArithmeticError
    for layer in model.model.layers:
        if hasattr(layer.mixer, "experts"):
            layer.mixer.experts.act_fn = Fail()
    try:
        model(torch.arange(16)[None])
    except ArithmeticError:
        facts["linear_restored"] = torch.nn.functional.linear is linear
print(json.dumps(facts))
'''


@pytest.fixture(scope="module")
def facts():
    run = subprocess.run([sys.executable, "-c", AS_IT_COMES], capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"})
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_importing_it_imports_vllm_and_megatron(facts):
    assert facts["imports"] == ["vllm", "megatron"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="ModelOpt's own kernels run here")
def test_nvfp4_needs_a_gpu(facts):
    assert not facts["triton"]
    assert "must be a CUDA tensor" in facts["activations"]
    assert "requires triton" in facts["weights"]


def test_scale_search_off_the_gpu_is_126_passes(facts):
    assert facts["passes"] == 126


def test_exported_names_carry_the_sentinel(facts):
    assert all("\x00" in name for name in facts["names"])


def test_an_exception_in_an_expert_leaves_linear_swapped(facts):
    assert facts["linear_restored"] is False


def test_our_names_are_clean():
    from components.quantize import modelopt_cpu

    broken = ".\x00backbone_name_sentinel"
    assert modelopt_cpu._strip_sentinel(f"backbone.layers.0.mixer.conv1d{broken}") == "backbone.layers.0.mixer.conv1d"
    assert modelopt_cpu._strip_sentinel(f"backbone.layers.1{broken}*") == "backbone.layers.1*"
    assert modelopt_cpu._strip_sentinel(f"backbone.layers.1{broken}.*") == "backbone.layers.1.*"
    assert modelopt_cpu._strip_sentinel("lm_head") == "lm_head"


def test_linear_is_restored_after_an_exception(tmp_path):
    from components.quantize import modelopt_cpu

    linear = torch.nn.functional.linear
    with pytest.raises(ArithmeticError), modelopt_cpu.quiet(tmp_path / "log"):
        torch.nn.functional.linear = None
        raise ArithmeticError
    assert torch.nn.functional.linear is linear
