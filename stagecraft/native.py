"""The C++ loops of a package for CPUs as one library: compiled once per machine, kept in the user's cache; without a compiler PyTorch's
own operators do.

`STAGECRAFT_NUMERICS=eager` turns it off. Same inputs, same bits on one machine; another kind of CPU, or PyTorch's operators, give sums
in another order.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

# Without -ffast-math in full glibc's vectorised expf is not used. It must not reach the link: there GCC before 13 adds an initialiser that
# flushes subnormal numbers to zero in the whole process. Divisions are the processor's: by the reciprocals that GCC makes for -ffast-math,
# 1 / (1 + e^89) in float32 is no number.
FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-ffast-math", "-mrecip=!div,!vec-div", "-std=c++20",
         "-fPIC", "-c")
_TORCH = Path(torch.__file__).parent


@functools.cache
def library(package: Path) -> ctypes.CDLL | None:
    """The compiled `*.cpp` of a directory, with PyTorch's headers and library; None, with one warning, where they cannot be had."""
    if os.environ.get("STAGECRAFT_NUMERICS") == "eager":
        return None
    try:
        path = _built(package)
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # it is not what was built
            path.unlink()
            return ctypes.CDLL(str(_built(package)))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: there is no home directory
        lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        reason = next((line for line in lines if "error" in line), lines[-1])  # compilers go on, with the line and where in it
        warnings.warn(f"the loops of {package.name} run in PyTorch's operators, which is slower: {reason}", stacklevel=2)
        return None


def _built(package: Path) -> Path:
    """The shared library of these sources, these flags, this compiler and this CPU; built under a name of its own, then renamed."""
    sources, texts = sorted(package.glob("*.cpp")), [path.read_text() for path in sorted(package.glob("*.[ch]pp"))]
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise OSError(f"there is no {os.environ.get('CXX', 'g++')}")
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), platform.machine())
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    headers = [f"-I{_TORCH / 'include'}", f"-I{_TORCH / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
    libraries = [f"-L{_TORCH / 'lib'}", "-ltorch_cpu", "-lc10", "-Wl,-z,defs"]
    key = hashlib.sha256("\0".join([*texts, *FLAGS, version, cpu, torch.__version__]).encode()).hexdigest()[:16]
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stagecraft" / "native" / f"{package.name}-{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            made, unlinked = Path(directory) / path.name, [str(Path(directory) / f"{source.stem}.o") for source in sources]
            compilations = ([*FLAGS, *headers, str(source), "-o", to] for source, to in zip(sources, unlinked))
            # -Bsymbolic: a name that libc has too (`advance`, say) means ours.
            for command in (*compilations, ["-shared", "-Wl,-Bsymbolic", *unlinked, *libraries, "-o", str(made)]):
                subprocess.run([compiler, *command], capture_output=True, text=True, check=True)
            with made.open("rb") as stream:  # a library cut short by a power cut would end every later process
                os.fsync(stream.fileno())
            made.replace(path)
    return path


@functools.cache
def gemm() -> ctypes.c_void_p | None:
    """PyTorch's BLAS, the product of float32 matrices; None in a build that does not show it."""
    try:
        torch_cpu = ctypes.CDLL(str(next((_TORCH / "lib").glob("libtorch_cpu.*"))))
        return ctypes.cast(torch_cpu.sgemm_, ctypes.c_void_p)
    except (StopIteration, OSError, AttributeError):
        return None


def at(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's values lie; a null pointer for none. The tensor lives as long as the pointer, that is to the end of the call."""
    pointer = ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
    pointer.tensor = tensor
    return pointer
