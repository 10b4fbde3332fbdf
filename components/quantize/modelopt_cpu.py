"""Everything in ModelOpt 0.47.0 that is worked around lives here, each entry with the upstream line and the reason.

`tests/quantize/test_modelopt_defects.py` shows each defect without its workaround, so it fails once upstream has mended it.
On a GPU the two NVFP4 entries do nothing: ModelOpt's own kernels run there.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stagecraft.numerics import least_squares, nvfp4
from stagecraft.numerics.rounding import e2m1

HEAVY = ("vllm", "megatron")  # what ModelOpt's plug-ins import although this stage uses neither


@cache
def load() -> None:
    """Import ModelOpt and install the workarounds; call it before anything else of this stage touches ModelOpt."""
    with _without(HEAVY), warnings.catch_warnings():
        # torch/__init__.py:55 warns that transformers 5.19 is untested: our tests are the test.
        warnings.simplefilter("ignore")
        for module in ("modelopt.torch.quantization", "modelopt.torch.export", "modelopt.recipe"):
            importlib.import_module(module)
    _nvfp4_activations_on_cpu()
    _nvfp4_weights_on_cpu()
    _fast_scale_search()
    _names_without_sentinel()


def quantize(model: torch.nn.Module, config: dict[str, Any], batches: Sequence[Tensor],
             on_batch: Callable[[], None] = lambda: None) -> None:
    """Insert and calibrate quantizers, in place, on `batches` (int64 [B, T] each)."""
    import modelopt.torch.quantization as mtq

    def forward_loop(model: torch.nn.Module) -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch, use_cache=False)
                on_batch()

    mtq.quantize(model, config, forward_loop)


@contextlib.contextmanager
def quiet(path: Path) -> Iterator[None]:
    """Send what ModelOpt prints (each module it converts, its own progress bars, warnings) to a file, and undo its changes to
    PyTorch on the way out, also by an exception."""
    with open(path, "a") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream), clean_functional():
        yield


@contextlib.contextmanager
def clean_functional() -> Iterator[None]:
    """Leave `torch.nn.functional.linear` as it was found.

    quantization/plugins/huggingface.py:1069: the wrapper of fused experts swaps `F.linear` during its forward and an exception in
    there leaves the swapped one behind, so that the next model computes with the quantizers of the last.
    """
    linear = torch.nn.functional.linear
    try:
        yield
    finally:
        torch.nn.functional.linear = linear


@contextlib.contextmanager
def _without(modules: tuple[str, ...]) -> Iterator[None]:
    """torch/opt/plugins/__init__.py:34 and quantization/plugins: ModelOpt imports vLLM and Megatron wherever they are installed,
    six seconds of imports here. A `None` in `sys.modules` makes its `import_plugin` pass over them."""
    hidden = [module for module in modules if module not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for module in hidden:
            del sys.modules[module]


def _nvfp4_activations_on_cpu() -> None:
    """quantization/tensor_quant.py:173 asserts a CUDA tensor; the operation is a global of that module, looked up at each call."""
    from modelopt.torch.quantization import tensor_quant

    original = tensor_quant.dynamic_block_quantize_op

    def dynamic_block_quantize_op(inputs: Tensor, block_size: int, amax: Tensor, num_bits: int, exponent_bits: int,
                                  scale_num_bits: int, scale_exponent_bits: int) -> Tensor:
        is_nvfp4 = (block_size, num_bits, exponent_bits, scale_num_bits, scale_exponent_bits) == (nvfp4.BLOCK, 4, 2, 8, 4)
        if inputs.is_cuda or not is_nvfp4:
            return original(inputs, block_size, amax, num_bits, exponent_bits, scale_num_bits, scale_exponent_bits)
        return nvfp4.quantize_dequantize(inputs, tensor_amax=amax.float().amax())

    tensor_quant.dynamic_block_quantize_op = dynamic_block_quantize_op


def _nvfp4_weights_on_cpu() -> None:
    """quantization/tensor_quant.py:586 wants Triton kernels, and looks the flag and the function up at each call."""
    from modelopt.torch.kernels.quantization import gemm

    if not gemm.IS_AVAILABLE:
        gemm.static_blockwise_fp4_fake_quant = static_fake_quant
        gemm.IS_AVAILABLE = True


def static_fake_quant(x: Tensor, amax: Tensor, global_amax: Tensor | None = None, quantize_block_scales: bool = True,
                       fp8_max_for_normalization: float = 448.0, out_dtype: torch.dtype | None = None) -> Tensor:
    """The arithmetic of `static_blockwise_fp4_fake_quant` (kernels/quantization/gemm/fp4_kernel.py:254): given block maxima."""
    from modelopt.torch.quantization.tensor_quant import scaled_e4m3_impl

    scale = amax.float() / 6.0
    if quantize_block_scales:
        largest = amax.float().amax() if global_amax is None else global_amax.float()
        scale = scaled_e4m3_impl(scale, largest * (448.0 / fp8_max_for_normalization) / 6.0)
    scale = torch.where(scale == 0, 1.0, scale).reshape(-1, 1)
    blocks = x.float().reshape(scale.shape[0], -1)
    return torch.copysign(e2m1(blocks.abs() / scale) * scale, blocks).reshape(x.shape).to(out_dtype or x.dtype)


def _fast_scale_search() -> None:
    """quantization/calib/mse.py:262: off CUDA the search is 126 passes over the weight; `least_squares` finds the same scales in one."""
    from modelopt.torch.quantization.calib.mse import NVFP4MSECalibrator

    reference = NVFP4MSECalibrator._run_reference_collect

    def _run_reference_collect(self: NVFP4MSECalibrator, x: Tensor) -> None:
        if self._error_func is not None or x.shape != (self._initial_amax.numel(), nvfp4.BLOCK):
            reference(self, x)
            return
        scales = least_squares.best_scales(x, self._global_amax.reshape(()))
        self._best_amax = (self._global_amax * (scales.float() / 448.0)).reshape(self._initial_amax.shape)

    NVFP4MSECalibrator._run_reference_collect = _run_reference_collect


def _names_without_sentinel() -> None:
    """export/quant_aware_conversion.py:262: the sentinel itself contains "model." as the rename rules see it ("." is any
    character), gets renamed, and stays, NUL byte included, in the module names of both JSON files."""
    from modelopt.torch.export import quant_aware_conversion, unified_export_hf

    original = quant_aware_conversion.build_reverse_name_mapper

    def build_reverse_name_mapper(model: torch.nn.Module):
        mapper = original(model)
        return None if mapper is None else lambda name: _strip_sentinel(mapper(name))

    unified_export_hf.build_reverse_name_mapper = build_reverse_name_mapper


def _strip_sentinel(name: str) -> str:
    head, nul, tail = name.partition(".\x00")
    if not nul:
        return name
    return head + next((glob for glob in (".*", "*") if tail.endswith(glob)), "")
