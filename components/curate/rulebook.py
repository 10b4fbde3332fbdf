"""What a document must have been like to be in the corpus, step by step, in words: for the report and for `stagecraft lineage`."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from components.curate.params import Params
from components.curate.rules.bounds import ANY_LANGUAGE, RuleBounds
from components.curate.synthetic import SOURCE as SYNTHETIC

_FORBIDDEN = ("lorem_ipsum", "curly_bracket", "javascript", "policy")  # C4's rules that are on or off


def rulebook(params: Params, evaluation: dict[str, int]) -> list[dict[str, Any]]:
    """In order, each `step` with its rules for `all` documents, those for `text` only, which is what is not code, and those of that for
    `english` only, which is what is not with a probability of `sure` in another language. The source `exempt` meets those for `all` alone.

    Args:
        evaluation: name -> texts of the sets that no document may hold.
    """
    languages = f"one of {', '.join(params.languages)}, or the identifier is less than {params.min_language_probability} sure of another"
    bounds = asdict(RuleBounds(families=tuple(params.rules.families), **params.rules.bounds))
    said = {family: f"{family}: {', '.join(_of_family(family, bounds))}" for family in params.rules.families}
    book = {
        "normalise": {"all": ["not empty"]},
        "language": {"text": [languages if params.languages else "any"]},
        "quality": {"all": [*(_said(name, value) for name, value in asdict(params.quality).items()), "no control token of the chat format"],
                    "text": [rules for family, rules in said.items() if family in ANY_LANGUAGE],
                    "english": [rules for family, rules in said.items() if family not in ANY_LANGUAGE],
                    "sure": params.min_language_probability, "exempt": SYNTHETIC},
        "redact": {"all": ["personal data and secrets replaced by placeholders"]},
        "decontaminate": {"all": [f"no 13 words in a row, or whole shorter line, of the {size:,} texts of `{name}`"
                                  for name, size in evaluation.items()]},
        "exact_duplicates": {"all": ["the smallest id of all with this text"]},
        "near_duplicates": {"all": [f"the smallest id of its set of documents at least {params.near_duplicate_similarity} similar"]},
    }
    if params.substring_min_tokens:
        book["repeated_substrings"] = {"all": [
            f"passages of {params.substring_min_tokens} words and symbols that a smaller id has are cut",
            f"{_said('min_characters', params.quality.min_characters)} after the cuts"]}
    book["heldout_overlap"] = {"all": ["if held out: the longest stretch of lines that share no 13 words in a row with a text trained on"]}
    return [{"step": step, "all": [], "text": [], "english": [], **rules} for step, rules in book.items()]


def _of_family(family: str, bounds: dict[str, Any]) -> list[str]:
    names = [item.name for item in fields(RuleBounds) if item.name.startswith(f"{family}_")]
    return [_said(name.removeprefix(f"{family}_"), bounds[name]) for name in names if bounds[name] is not False]


def _said(name: str, value: Any) -> str:
    words = name.replace("_", " ")
    if value is True:
        return f"no {words}" if name in _FORBIDDEN else words
    if isinstance(value, tuple):
        return f"{words} {' '.join(str(part) if isinstance(part, str) else '{}: {}'.format(*part) for part in value)}"
    return f"{words} {value:,}" if isinstance(value, int) else f"{words} {value}"
