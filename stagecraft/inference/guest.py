"""vLLM as a guest in a process that belongs to a trainer: what it takes at start, and at the end, is given back."""

from __future__ import annotations

import gc
import logging
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def arrival() -> Iterator[None]:
    """Around the start of an engine and the reloading of its weights.

    vLLM seeds the global generators (v1/worker/cpu_worker.py:156), replaces torch.set_num_threads for good by a function that warns
    (line 145) and binds all memory of the process to one NUMA node (line 70); its imports warn about what is no fault of the user.
    """
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    set_num_threads = torch.set_num_threads
    torch.ops._C.init_cpu_memory_env = lambda nodes: None
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        torch.set_num_threads = set_num_threads
        del torch.ops._C.init_cpu_memory_env


@contextmanager
def at_work(threads: int) -> Iterator[None]:
    """Around everything an engine computes: with its own number of threads, and without compiling.

    The operators of a small model are microseconds long, so a team of OpenMP threads waits at barriers more than it computes, and
    on a busy machine it waits for time slices. Of what vLLM wraps in torch.compile one function is met on a CPU, a comparison
    (v1/sample/ops/logprobs.py:10), and a run of the C++ compiler costs more than it can ever save.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def interrupted(engine: Any, between: Callable[[], object] | None) -> Iterator[None]:
    """`between` is called before each step of a vllm.LLMEngine; LLM.generate offers no such place (entrypoints/llm.py, _run_engine)."""
    if between is None:
        yield
        return
    step = engine.step

    def one() -> Any:
        between()
        return step()

    engine.step = one
    try:
        yield
    finally:
        del engine.step


def shut_down(llm: Any, *, keep_process_group: bool) -> None:
    """Free an in-process engine.

    Args:
        llm: a vllm.LLM with its engine core in this process.
        keep_process_group: torch.distributed was there before the engine: EngineCore.shutdown (v1/engine/core.py:839) would
            destroy it, so the engine's parts are shut down one by one.
    """
    from vllm.distributed import parallel_state

    client = llm.llm_engine.engine_core
    if keep_process_group:
        client._finalizer.detach()
        client.engine_core.model_executor.shutdown()
        client.engine_core.scheduler.shutdown()
        if parallel_state._WORLD is not None:  # it is in this process, not in those that divide the model
            parallel_state.destroy_model_parallel()
            parallel_state._WORLD.destroy()
            parallel_state._WORLD = parallel_state._NODE_COUNT = None
        gc.unfreeze()
    else:
        client.shutdown()
    gc.collect()
