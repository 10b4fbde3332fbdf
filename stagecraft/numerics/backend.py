"""Runs a kernel compiled by TorchInductor (C++ on a CPU, Triton on a GPU) or, without a compiler, as plain PyTorch: same bits.

`STAGECRAFT_NUMERICS=eager` (or `use("eager")`) forces plain PyTorch; the default compiles, and falls back with one warning.
Compiled code is kept in `TORCHINDUCTOR_CACHE_DIR`, by default `stagecraft/inductor` in the user's cache directory.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

Kernel = Callable[..., Tensor]
MODES = ("auto", "eager", "compiled")

_COUNTED = 2**31 - 1  # elements

_mode = os.environ.get("STAGECRAFT_NUMERICS", "auto")
_broken: str | None = None


def name() -> str:
    """What the next kernel call runs on: "compiled" or "eager"."""
    if _mode not in MODES:
        raise ValueError(f"STAGECRAFT_NUMERICS={_mode!r}; choose from {', '.join(MODES)}")
    return "eager" if _mode == "eager" or (_mode == "auto" and _broken) else "compiled"


@contextmanager
def use(mode: str) -> Iterator[None]:
    """Force "eager" or "compiled" (which then raises instead of falling back) inside a `with` block."""
    global _mode
    if mode not in MODES:
        raise ValueError(f"unknown backend {mode!r}; choose from {', '.join(MODES)}")
    before, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = before


def kernel(*sizes: int) -> Callable[[Kernel], Kernel]:
    """Decorate a function of contiguous tensors (or None) that returns one tensor; it is compiled when first called.

    One compiled variant serves all sizes; another is needed per dtype, device, presence of an argument and dimension of size
    one. Inductor is called on the exported graph without Dynamo in front of it: a call costs 10 microseconds instead of 45,
    nothing is ever recompiled behind one's back, and functions that somebody patched in `torch.cuda` do not come into play.
    Gradients do not flow through a kernel. On a GPU, where the compiled code counts in int32, larger tensors are left to plain PyTorch.

    Args:
        sizes: the dimensions of the first tensor whose size varies; all other sizes are the same in every call.
    """
    def decorate(function: Kernel) -> Kernel:
        variants: dict[tuple[object, ...], Kernel] = {}

        @functools.wraps(function)
        def call(*args: Tensor | None) -> Tensor:
            global _broken
            with torch.no_grad():
                if name() == "eager" or any(arg is not None and arg.is_cuda and arg.numel() > _COUNTED for arg in args):
                    return function(*args)
                key = tuple(arg if arg is None else (arg.dtype, arg.device, *[size == 1 for size in arg.shape]) for arg in args)
                if key not in variants:
                    try:
                        variants[key] = _compile(function, args, sizes)
                    except Exception as error:
                        if _mode == "compiled":
                            raise
                        _broken = f"{type(error).__name__}: {error}".splitlines()[0]
                        warnings.warn(f"numerics fall back to plain PyTorch (same results, slower): {_broken}", stacklevel=2)
                        return function(*args)
                return variants[key](*[arg for arg in args if arg is not None])[0]

        return call

    return decorate


def computed_once(x: Tensor) -> Tensor:
    """`x` itself; Inductor keeps it in memory instead of computing it again for every element that it is broadcast to."""
    return x.as_strided(x.shape, x.stride())


def _compile(function: Kernel, args: tuple[Tensor | None, ...], sizes: tuple[int, ...]) -> Kernel:
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_cache_directory()))
    from torch._inductor import config as inductor
    from torch._inductor import standalone_compile
    from torch.export import Dim, export

    class OnTensors(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            left = iter(tensors)
            return function(*[arg if arg is None else next(left) for arg in args])

    given = [_example(arg, sizes if index == 0 else ()) for index, arg in enumerate(args) if arg is not None]
    varying = {at: Dim.DYNAMIC for at in sizes if given[0].shape[at] != 1}
    shapes = (varying, *[{}] * (len(given) - 1))
    # `export` raises if the graph would hold for some sizes only.
    graph = export(OnTensors(), tuple(given), dynamic_shapes={"tensors": shapes}).graph_module
    # On a GPU TorchInductor divides approximately and flushes subnormals unless told otherwise.
    with inductor.patch({"eager_numerics.division_rounding": True, "eager_numerics.disable_ftz": True}):
        return standalone_compile(graph, given, dynamic_shapes="from_graph")


def _example(arg: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A small tensor like `arg`; its varying sizes are unlike each other and the fixed ones, so that none are taken for equal."""
    shape = [2 * at + 5 if at in sizes and size != 1 else size for at, size in enumerate(arg.shape)]
    return torch.zeros(shape, dtype=arg.dtype, device=arg.device)


def _cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stagecraft" / "inductor"
