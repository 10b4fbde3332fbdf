"""What the imports of transformers and vLLM bring along that nothing here asks for."""

from __future__ import annotations

import importlib
import sys


def without_scientific_libraries() -> None:
    """Have transformers and vLLM do without scikit-learn and SciPy in this process, as they do where these are not installed; to be called
    before anything else of vLLM is imported, and once its variables are set.

    They import them for a threshold of assisted generation, a loss of object detection and the resampling of sound, which nobody asks for
    here, and which take a good part of an engine's start.
    """
    import transformers.utils

    transformers.utils.is_sklearn_available = transformers.utils.is_scipy_available = lambda: False
    if "scipy.signal" not in sys.modules:
        sys.modules["scipy.signal"] = None  # type: ignore[assignment]
        try:
            importlib.import_module("vllm.multimodal.audio")
        finally:
            del sys.modules["scipy.signal"]
