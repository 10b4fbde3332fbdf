"""An engine in a process that has imported numba or flask.

Upstream: vllm/triton_utils/dispatcher.py:135 (`_rebind_kernels`) walks over every value in every module. It asks `hasattr(value,
"__dict__")`: flask's proxies raise RuntimeError outside a request. And it takes `vars(value)` for a dictionary: llvmlite's library
handle answers every attribute, `__dict__` too, with a function wrapper. Either ends the start of the engine.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import Any

from vllm.triton_utils import dispatcher


def has_attribute(value: Any, name: str) -> bool:
    """`hasattr`; False, if asking fails in whatever way."""
    try:
        return builtins.hasattr(value, name)
    except Exception:
        return False


def attributes(value: Any) -> Mapping[str, Any]:
    """`vars(value)`; nothing, if that is no mapping."""
    found = builtins.vars(value)
    return found if isinstance(found, Mapping) else {}


def mend() -> None:
    dispatcher.hasattr = has_attribute
    dispatcher.vars = attributes
