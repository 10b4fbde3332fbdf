"""Questions about long documents, for the long-context phase: the answer stands somewhere in the document, far from the question.

The recipe's long-context blend has a fifth of long-document question answering (arXiv 2604.12374). Ours are
built from the document alone, so every answer is right.
"""

from __future__ import annotations

from random import Random

_SHORTEST, _LONGEST = 20, 200  # characters of a line fit to be quoted


def ask(text: str, identifier: str) -> str | None:
    """The document with a question that only its reader can answer, and the answer; None if it has no line to ask about.

    Args:
        identifier: of the document; picks the line.
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    seen: dict[str, int] = {}
    for line in lines:
        seen[line] = seen.get(line, 0) + 1
    fit = [index for index in range(len(lines) - 1)
           if seen[lines[index]] == 1 and all(_SHORTEST <= len(line) <= _LONGEST for line in lines[index:index + 2])]
    if not fit:
        return None
    index = Random(identifier).choice(fit)
    return f"{text}\nQuestion: which line of the text follows this one?\n{lines[index]}\nAnswer: {lines[index + 1]}\n"
