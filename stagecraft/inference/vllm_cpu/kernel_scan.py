"""An engine in a process that has imported numba.

Upstream: vllm/triton_utils/dispatcher.py:139 (`_rebind_kernels`) walks over every value in every module and takes `vars(value)` for
a dictionary. llvmlite's library handle answers every attribute, `__dict__` too, with a function wrapper: AttributeError at start.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import Any

from vllm.triton_utils import dispatcher


def attributes(value: Any) -> Mapping[str, Any]:
    """`vars(value)`; nothing, if that is no mapping."""
    found = builtins.vars(value)
    return found if isinstance(found, Mapping) else {}


def mend() -> None:
    dispatcher.vars = attributes
