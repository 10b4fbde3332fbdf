"""What the imports of transformers and vLLM bring along that nothing here asks for."""

from __future__ import annotations


def without_scikit_learn() -> None:
    """Have transformers do without scikit-learn in this process; to be called before `transformers.generation` is imported.

    Where it is installed (lm-eval wants it), transformers/generation/candidate_generator.py imports it for a threshold of assisted
    generation, which nobody asks for here: about a fifth of the time that a process takes to import vLLM.
    """
    import transformers.utils

    transformers.utils.is_sklearn_available = lambda: False
