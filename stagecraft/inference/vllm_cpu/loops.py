"""The C++ loops of this package: routed experts, and Mamba-2's states under speculative decoding."""

from functools import partial
from pathlib import Path

from stagecraft import native

library = partial(native.library, Path(__file__).parent)
