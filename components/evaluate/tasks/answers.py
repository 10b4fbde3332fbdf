"""How answers of the real benchmarks are judged where a filter and a metric of lm-eval's do not suffice."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from stagecraft.contract.errors import UserError
from stagecraft.environments.sandbox import run_confined
from stagecraft.environments.written import code_of

LETTERS = "ABCDEFGHIJ"
_GPQA = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def options(document: dict[str, Any]) -> str:
    """A question with lettered options, as text. GPQA's four answers are ordered by a hash: the same for everyone, and no habit."""
    question = document.get("question") or document["Question"]
    listed = "\n".join(f"({letter}) {text.strip()}" for letter, text in zip(LETTERS, _choices(document)))
    return f"{question.strip()}\n{listed}"


def letter(document: dict[str, Any]) -> str:
    """The letter of the right option."""
    if "answer" in document:
        return document["answer"]
    return LETTERS[_choices(document).index(document["Correct Answer"])]


def mathematics(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the last \\boxed{...} of the answer equals the expected one, after lm-eval's normalisation of LaTeX."""
    from lm_eval.tasks.hendrycks_math.utils import is_equiv, last_boxed_only_string, remove_boxed

    boxed = last_boxed_only_string(results[0])
    try:
        return {"exact_match": float(boxed is not None and is_equiv(remove_boxed(boxed), document["answer"]))}
    except AssertionError:  # `\\boxed` without braces
        return {"exact_match": 0.0}


def programs(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a HumanEval answer passes the problem's tests, run in the sandbox.

    What the prompt has before the function stands before the answer too: imports, and helpers that some of the tests call themselves.

    Raises:
        UserError: there is no working sandbox; a model's code runs nowhere else.
    """
    code, head = code_of(results[0]), f"def {document['entry_point']}("
    # A body alone, as a completion would give it, goes on behind the whole prompt.
    code = (document["prompt"].partition(head)[0] if head in code else document["prompt"]) + code
    failed = run_confined(code, [document["test"], f"check({document['entry_point']})"])
    if failed == "no_sandbox":
        raise UserError("code of a model runs in a sandbox only, and there is none", where="humaneval",
                        mend="install bubblewrap, or take the task out of evaluate.benchmarks.tasks")
    return {"passed": float(failed is None)}


def _choices(document: dict[str, Any]) -> list[str]:
    if "options" in document:
        return document["options"]
    return sorted((document[key] for key in _GPQA), key=lambda text: sha256((document["Question"] + text).encode()).digest())
