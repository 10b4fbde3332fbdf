"""Instruction following for lm-eval: how an answer to IFEval is scored, and prompts of the same kind that are made here."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from stagecraft.environments.constraints import draw_request, held


def follows(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Strict accuracy of one answer: `prompt_level` (all constraints held) and `instruction_level` (the share that did).

    Args:
        document: `instruction_id_list`, and `kwargs`, a mapping for each; null arguments are as good as none.
    """
    found = held(results[0], document["instruction_id_list"], document["kwargs"])
    return {"prompt_level": float(all(found)), "instruction_level": sum(found) / len(found)}


def constraints(*, prompts: int, seed: int, **_: Any) -> dict[str, list[dict[str, Any]]]:
    """Requests about one word each with one or two constraints: {"test": docs}, docs as IFEval has them ("prompt", ...)."""
    documents = []
    for index in range(prompts):
        prompt, names, arguments = draw_request(Random(f"{seed}/instructions/{index}"), 1 + index % 2)
        documents.append({"prompt": prompt, "instruction_id_list": names, "kwargs": arguments,
                          "stratum": f"{len(names)} constraint{'s' if len(names) > 1 else ''}"})
    return {"test": documents}
