"""How a rank that computes on a CPU takes memory: pages of freed tensors are kept for the next ones.

A step allocates and frees the same large tensors again and again. By default glibc gives them back to the kernel, which has to clear every
page that it hands out anew.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 1 << 30  # bytes; larger blocks go back when they are freed


def keep_pages() -> None:
    """For this process, from now on. Elsewhere than with glibc nothing happens."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
