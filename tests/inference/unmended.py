"""Prints, as JSON, what vLLM does in a process without our plugin: {defect: still there?}. Run by test_upstream_defects.py."""

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

os.environ.update(VLLM_LOGGING_LEVEL="ERROR", VLLM_PLUGINS="")  # before vllm is imported

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.kernels.linear import _POSSIBLE_NVFP4_KERNELS
from vllm.model_executor.layers import utils
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, RoutingMethodType
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2
from vllm.model_executor.layers.mamba.ops.cpu.causal_conv1d import causal_conv1d_update_cpu
from vllm.model_executor.layers.mamba.ops.cpu.mamba_ssm import selective_state_update
from vllm.model_executor.layers.quantization.modelopt import ModelOptFp8Config
from vllm.model_executor.models import nemotron_h_mtp
from vllm.platforms import current_platform
from vllm.platforms.interface import PlatformEnum
from vllm.triton_utils.dispatcher import _rebind_kernels
from vllm.utils.cpu_triton_utils import _expand_kernel_impl
from vllm.utils.torch_utils import resolve_kv_cache_dtype_string
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder
from vllm.v1.structured_output import StructuredOutputManager

from tests.checkpoints import tiny_checkpoint
from tests.inference.recurrence import convolution_case, recurrence_case, reference_convolution, reference_recurrence


def raises(kind: type[Exception], call: Callable[[], object]) -> bool:
    try:
        call()
    except kind:
        return True
    return False


def experts_without_gate() -> bool:
    return raises(NotImplementedError, lambda: FusedMoEConfig(
        num_experts=4, experts_per_token=2, hidden_dim=64, intermediate_size=128, num_local_experts=4, num_logical_experts=4,
        activation=MoEActivation.RELU2_NO_MUL, device="cpu", routing_method=RoutingMethodType.DeepSeekV3,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(), in_dtype=torch.float32))


def convolution_forgets_accepted() -> bool:
    case = convolution_case()
    expected, _ = reference_convolution(case)
    try:
        got = causal_conv1d_update_cpu(case.x.clone(), case.states.clone(), case.weight, case.bias, "silu",
                                       conv_state_indices=case.slots, query_start_loc=case.starts, num_accepted_tokens=case.accepted)
    except RuntimeError:
        return True
    return not torch.allclose(got, expected, atol=1e-4)


def recurrence_wrong_with_accepted() -> bool:
    case = recurrence_case()
    expected, states = reference_recurrence(case)
    state, out = case.state.clone(), torch.zeros_like(case.x)
    selective_state_update(state, case.x, case.dt, case.A, case.B, case.C, case.D, dt_bias=case.dt_bias, dt_softplus=True,
                           state_batch_indices=case.slots, dst_state_batch_indices=case.slots, out=out,
                           num_accepted_tokens=case.accepted, cu_seqlens=case.starts)
    return not (torch.allclose(out, expected, atol=1e-4) and torch.allclose(state, states, atol=1e-4))


def convolution_is_repacked() -> bool | None:
    if not torch.cpu._is_avx512_bf16_supported():
        return None
    layer = torch.nn.Module()
    layer.prefix, layer.weight = "model.layers.0.mixer.conv1d", torch.nn.Parameter(torch.randn(64, 1, 4).bfloat16())
    storage = layer.weight.data_ptr()
    utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    return layer.weight.data_ptr() != storage


def temperatures_are_cut() -> bool:
    expanded = torch.zeros(3)
    _expand_kernel_impl(expanded, torch.tensor([0.5, 0.7]), torch.tensor([2, 3], dtype=torch.int32), 0, 0)
    return not torch.equal(expanded, torch.tensor([0.5, 0.5, 0.7]))


def cache_becomes_fp8() -> bool:
    quantised = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"type": "float", "num_bits": 8, "dynamic": False}}
    model = SimpleNamespace(hf_config=SimpleNamespace(quantization_config=quantised))
    return "fp8" in resolve_kv_cache_dtype_string("auto", model)


def one_token_is_padded_with_drafts() -> bool:
    """The scheduler by itself: one request is under way, then one of a single token comes."""
    with TemporaryDirectory() as directory:
        config = EngineArgs(model=str(tiny_checkpoint(Path(directory))), max_model_len=96, max_num_seqs=4, skip_tokenizer_init=True,
                            enable_prefix_caching=False, async_scheduling=False,
                            speculative_config={"method": "mtp", "num_speculative_tokens": 2}).create_engine_config()
        config.cache_config.num_gpu_blocks = 64
        layers = KVCacheGroupSpec(["layer"], FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=32, dtype=torch.float32))
        scheduler = Scheduler(config, KVCacheConfig(64, [], [layers]), StructuredOutputManager(config), block_size=16)
        scheduler.add_request(Request("first", [5, 6, 7], SamplingParams(max_tokens=8), None))
        scheduler.update_from_output(scheduler.schedule(), ModelRunnerOutput(["first"], {"first": 0}, [[9]]))
        scheduler.add_request(Request("second", [5], SamplingParams(max_tokens=8), None))
        return scheduler.schedule().num_scheduled_tokens["second"] > 1


def thinking_is_ended_twice() -> bool:
    """A budget of one token, a draft that ends the thinking at once: is the end forced behind it?"""
    tags = SimpleNamespace(reasoning_start_token_ids=[1], reasoning_end_token_ids=[2])
    holder = ThinkingBudgetStateHolder(tags, 1, 2, torch.device("cpu"), False)
    holder.sync_batch(BatchUpdate(1, [], [(0, SamplingParams(thinking_token_budget=1), [9], [])], []))
    holder.update_state([[1]], [[2, 9]])
    return bool(holder.apply_to_logits(torch.zeros(2, 10), False, [[2, 9]])[1, 2] > 0)


def scan_fails(module: str, kind: type[Exception]) -> bool:
    """With this one module to look at."""
    modules, looked_at = dict(sys.modules), {module: importlib.import_module(module)}
    try:
        sys.modules.clear()
        sys.modules.update(looked_at)
        return raises(kind, lambda: _rebind_kernels([]))
    finally:
        sys.modules.update(modules)


def main() -> None:
    current_platform.import_kernels()
    fp8 = ModelOptFp8Config("FP8", True, None, [])
    print(json.dumps({
        "moe": experts_without_gate(),
        "mamba_speculative, convolution": convolution_forgets_accepted(),
        "mamba_speculative, recurrence": recurrence_wrong_with_accepted(),
        "conv_repack": convolution_is_repacked(),
        "prefix_caching": MambaMixer2.get_kv_cache_spec is not MambaBase.get_kv_cache_spec,
        "seeded_sampling": raises(RuntimeError, lambda: torch.Generator().get_offset()),
        "speculative_sampling, temperature": temperatures_are_cut(),
        "speculative_sampling, no draft": raises(RuntimeError, lambda: apply_top_k_top_p(
            torch.empty(0, 10), torch.empty(0, dtype=torch.int32), None)),
        "draft_dtype": "params_dtype=config.dtype" in inspect.getsource(nemotron_h_mtp),
        "quantised, float32": torch.float32 not in fp8.get_supported_act_dtypes(),
        "quantised, NVFP4 kernel": not _POSSIBLE_NVFP4_KERNELS.get(PlatformEnum.CPU),
        "kv_cache": cache_becomes_fp8(),
        "kernel_scan, numba": scan_fails("llvmlite.binding.ffi", AttributeError),
        "kernel_scan, flask": scan_fails("flask.globals", RuntimeError),
        "draft_padding": one_token_is_padded_with_drafts(),
        "thinking_budget": thinking_is_ended_twice(),
    }))


if __name__ == "__main__":
    main()
