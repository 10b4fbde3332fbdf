"""The C++ loops of this package: the scan, attention, the norm, the activation, the experts' products and the cross-entropy."""

from functools import partial
from pathlib import Path

from stagecraft import native

library = partial(native.library, Path(__file__).parent)
