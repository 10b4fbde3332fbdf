"""What stagecraft/megatron_cpu.py mends is still broken upstream: a test fails here once an entry can go."""

import inspect
import subprocess
import sys

import stagecraft.megatron_cpu

import pytest
import torch

pytestmark = pytest.mark.skipif(not stagecraft.megatron_cpu.ON_CPU, reason="the entries act on hosts without CUDA")


def fails_without_the_shim(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode, "upstream works by itself now: " + code
    return done.stderr


def test_megatron_needs_triton_to_be_imported():
    assert "triton" in fails_without_the_shim("import megatron.core")


def test_torch_without_cuda_has_no_current_device():
    fails_without_the_shim("import torch; torch.empty(1, device=torch.cuda.current_device())")
    fails_without_the_shim("import torch; torch.zeros(1).cuda()")


def test_the_optimizer_compares_type_strings():
    from megatron.core.optimizer import optimizer

    assert "torch.cuda.FloatTensor" in inspect.getsource(optimizer)
    assert torch.zeros(1).type() == "torch.FloatTensor"


def test_split_sizes_stay_tensors_on_a_cpu():
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    assert torch.is_tensor(moe_utils.maybe_move_tensor_to_cpu(torch.tensor([1, 2]), as_numpy=True))
    assert not torch.is_tensor(token_dispatcher.maybe_move_tensor_to_cpu(torch.tensor([1, 2]), as_numpy=True))


def test_the_dispatchers_stream_has_events_whoever_came_first():
    """In a process of its own: an engine's worker is imported between the shim and the first layer of experts."""
    code = """
import stagecraft.megatron_cpu
import torch
import vllm.v1.worker.cpu.shm
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
assert torch.cuda.Stream().record_event() is None, "vLLM's streams have events now"
MoEAlltoAllTokenDispatcher.cuda_dtoh_stream.record_event().synchronize()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_modules_of_transformer_engine_are_named_in_code():
    from megatron.core.models.hybrid import hybrid_block
    from megatron.core.transformer.moe import moe_layer

    assert "self.final_norm = TENorm(" in inspect.getsource(hybrid_block.HybridStack.__init__)
    assert "linear_cls = TELinear" in inspect.getsource(moe_layer.MoELayer.__init__)


def test_mamba_mixer_refuses_to_be_built_without_mamba_ssm():
    from megatron.core.ssm import mamba_mixer

    assert "if not HAVE_MAMBA_SSM:" in inspect.getsource(mamba_mixer.MambaMixer.__init__)


def test_packed_rows_are_taken_for_divided_by_sequence():
    """Without the entry the order of such a row is Transformer Engine's to restore."""
    error = fails_without_the_shim("""
import stagecraft.megatron_cpu, torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.ssm.mamba_context_parallel import _undo_attention_load_balancing as undo
undo(torch.arange(8.0), 2, PackedSeqParams(cu_seqlens_q=torch.tensor([0, 3, 8])))
""")
    assert "Please update Transformer Engine" in error


def test_saving_starts_a_manager_process():
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    assert "Manager().Queue()" in inspect.getsource(filesystem_async)


def test_the_distributed_optimizer_reads_fused_adams_state():
    from megatron.core.optimizer import distrib_optimizer

    assert "USING_APEX_OPTIMIZER" in inspect.getsource(distrib_optimizer)
