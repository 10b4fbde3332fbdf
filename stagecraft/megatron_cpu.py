"""megatron-core 0.19.2 on a host without CUDA: there "cuda" means "cpu". Import this before anything of megatron.

Everything that rebinds an attribute of torch or megatron-core sits in this file, each entry with the upstream place and the
reason; tests/model/test_megatron_cpu.py fails once an entry is no longer needed. What vLLM's processes want as well is in
stagecraft/gloo.py. On a host with CUDA only the seams that replace Transformer Engine act, and those only where Transformer Engine is
missing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from stagecraft.gloo import share_device
from stagecraft.onednn import replace_products

ON_CPU = not torch.cuda.is_available()


class _Stream:
    """A stream and an event at once: nothing is asynchronous on a CPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exception: object) -> bool:
        return False

    def record_event(self, *args: Any) -> _Stream:
        return self

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: _Stream) -> float:
        return 0.0

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def _cuda_means_cpu() -> None:
    cpu, cuda, stream = torch.device("cpu"), torch.cuda, _Stream()
    # torch._dynamo's trace rules assert that no two patched attributes share a function object: one lambda each.
    cuda.current_device = lambda: cpu
    for name in ("synchronize", "set_device", "empty_cache", "reset_peak_memory_stats"):
        setattr(cuda, name, lambda *args, **kwargs: None)
    cuda.Stream = cuda.Event = _Stream
    cuda.current_stream = lambda *args, **kwargs: stream
    cuda.default_stream = lambda *args, **kwargs: stream
    cuda.stream = lambda stream=None: contextlib.nullcontext()
    cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    cuda.manual_seed = lambda seed: torch.random.default_generator.manual_seed(seed)
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    # Literals `device="cuda"` in the token dispatcher, the optimizer and the router.
    for name in ("zeros", "ones", "tensor", "empty", "full", "arange", "rand", "randn", "empty_like", "zeros_like"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    # optimizer/optimizer.py and distrib_optimizer.py compare `tensor.type()` with 'torch.cuda.FloatTensor'.
    plain_type = torch.Tensor.type

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return plain_type(self, *args, **kwargs)
        name = plain_type(self)
        caller = sys._getframe(1).f_code.co_filename
        return name.replace("torch.", "torch.cuda.", 1) if "/megatron/core/optimizer/" in caller else name

    torch.Tensor.type = type_


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = torch.device("cpu")
        return factory(*args, **kwargs)

    return wrapper


@contextlib.contextmanager
def _without_compile() -> Iterator[None]:
    """core/jit.py wraps functions in torch.compile at import; compiling dozens of tiny functions costs more than it gives on a CPU."""
    compile_ = torch.compile
    torch.compile = lambda model=None, **kwargs: model if model is not None else (lambda function: function)
    try:
        yield
    finally:
        torch.compile = compile_


@contextlib.contextmanager
def _triton_at_import() -> Iterator[None]:
    """inference/communication/torch_symm_triton/*.py import triton unconditionally; its kernels never run on a CPU."""
    try:
        import triton  # noqa: F401

        yield
        return
    except ImportError:
        pass

    class Placeholder(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            if name in ("jit", "autotune", "heuristics"):
                return lambda *args, **kwargs: args[0] if len(args) == 1 and callable(args[0]) and not kwargs else (lambda kernel: kernel)
            return type(name, (), {"__init__": lambda self, *args, **kwargs: None})

    names = ("triton", "triton.language", "triton.language.extra", "triton.language.extra.libdevice", "triton.runtime",
             "triton.runtime.cache")
    modules = {}
    for name in names:
        module = Placeholder(name)
        module.__path__, module.__spec__ = [], importlib.machinery.ModuleSpec(name, None)
        modules[name] = module
    modules["triton"].__version__ = "3.0.0"
    modules["triton"].language = modules["triton.language"]
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def _patch_after_import() -> None:
    import megatron.core.tensor_parallel.random as random
    from megatron.core.transformer.moe import token_dispatcher

    # tensor_parallel/random.py:_get_cuda_rng_state goes past torch.cuda's public functions to the default CUDA generator.
    random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    # CudaRNGStatesTracker.fork warns when the CPU generator moves: here it is the generator.
    logging.getLogger(random.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())
    # moe/moe_utils.py:1169 converts split sizes to numpy only when the tensor lies on a GPU; with EP > 1 gloo needs numbers.
    token_dispatcher.maybe_move_tensor_to_cpu = (
        lambda tensor, as_numpy=False, record_stream=False: tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor)
    # moe/token_dispatcher.py:469 makes a stream for the process with the first layer of experts. vLLM (v1/worker/cpu/shm.py:63), if it
    # comes before that, has put a stream without events in place of ours.
    token_dispatcher.MoEAlltoAllTokenDispatcher.cuda_dtoh_stream = _Stream()


def _import_megatron() -> None:
    warnings.filterwarnings("ignore", module=r"megatron\..*")
    warnings.filterwarnings("ignore", module=r"torch\.distributed\.checkpoint\..*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")  # old names of collectives
    for name in ("megatron.core", "torch.distributed.elastic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not ON_CPU:
        import megatron.core

        return
    _cuda_means_cpu()
    share_device()
    replace_products()  # of PyTorch's matrices: MKL is slow on some processors
    with _without_compile(), _triton_at_import():
        import megatron.core
        import megatron.core.models.hybrid.hybrid_model
        import megatron.core.ssm.mamba_mixer  # noqa: F401
    _patch_after_import()


_import_megatron()


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Modules built inside have shapes and no memory: megatron-core makes tensors where torch.cuda.current_device says."""
    current = torch.cuda.current_device
    torch.cuda.current_device = lambda: torch.device("meta")
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.cuda.current_device = current


def bind_kernels(*, split_conv_scan: Callable[..., torch.Tensor], gated_norm: type[torch.nn.Module]) -> None:
    """Give MambaMixer its kernels where mamba_ssm is missing (ssm/mamba_mixer.py:202 refuses to be built without it).

    Args:
        split_conv_scan: signature of mamba_ssm's `mamba_split_conv1d_scan_combined`.
        gated_norm: signature of mamba_ssm's gated `RMSNorm`, from which mamba_mixer.py derives ExtendedRMSNorm at import.
    """
    import megatron.core.ssm.mamba_mixer as mixer

    if mixer.HAVE_MAMBA_SSM:
        return
    mixer.HAVE_MAMBA_SSM = mixer.MAMBA_HAS_STATE_DTYPE = True
    mixer.ExtendedRMSNorm = gated_norm
    mixer.mamba_split_conv1d_scan_combined = split_conv_scan
    mixer._check_mamba_sequence_packing_support = lambda for_inference_not_training=True: (not for_inference_not_training, "training only")


def bind_packed_rows(*, roll: Callable[..., Any]) -> None:
    """Let context parallelism divide packed rows as it divides others, wherever the boundaries of their sequences are.

    megatron-core takes every sequence of such a row for divided by itself: ssm/mamba_context_parallel.py:359 and 397 then need Transformer
    Engine to put the row in order, and transformer/multi_token_prediction.py:238 looks for a successor there.

    Args:
        roll: signature of multi_token_prediction's `roll_tensor`.
    """
    from megatron.core.ssm import mamba_context_parallel
    from megatron.core.transformer import multi_token_prediction

    for name in ("_undo_attention_load_balancing", "_redo_attention_load_balancing"):
        upstream = getattr(mamba_context_parallel, name)
        setattr(mamba_context_parallel, name, lambda row, ranks, packed=None, upstream=upstream: upstream(row, ranks))
    multi_token_prediction.roll_tensor = roll


def bind_modules(*, norm: Any, duplicated_linear: Any) -> None:
    """Set the modules that are named in code rather than in the layer spec, for models built from now on.

    models/hybrid/hybrid_block.py:215 (final norm) and transformer/moe/moe_layer.py:266 (latent projections).
    """
    import megatron.core.models.hybrid.hybrid_block as hybrid_block
    from megatron.core.transformer.moe import moe_layer

    hybrid_block.TENorm = norm
    moe_layer.HAVE_TE, moe_layer.TELinear = True, duplicated_linear


def bind_adam(adam: type[torch.optim.Optimizer]) -> None:
    """Use one Adam everywhere, with FusedAdam's state layout: optimizer/distrib_optimizer.py:642,940 cannot resume torch's AdamW."""
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distrib_optimizer

    optimizer.Adam = distrib_optimizer.Adam = adam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_APEX_OPTIMIZER = True
