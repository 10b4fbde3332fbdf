"""The C++ loops of this package: the scan and the cross-entropy."""

from functools import partial
from pathlib import Path

from stagecraft import native

library = partial(native.library, Path(__file__).parent)
