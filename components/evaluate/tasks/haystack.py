"""Long-context tasks made on the spot, in the manner of RULER (arXiv 2404.06654): a needle in a haystack, and variable tracking.

Lengths are in words, not tokens: whatever their tokenizers, all models and endpoints are asked the same prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from stagecraft.data.tasks.words import NAMES, NOUNS

if TYPE_CHECKING:
    from datasets import Dataset

_DEPTHS = 5  # places of the needle, evenly from the start of the haystack to its end


def needles(*, lengths: Sequence[int], prompts: int, seed: int, distractors: int, **_: Any) -> dict[str, list[dict[str, Any]]]:
    """One code to find among `distractors` codes of other people and sentences that say nothing.

    Args:
        lengths: words of the haystack; the prompts are shared evenly among them.
        prompts: how many in all.

    Returns:
        {"test": docs}, a doc being {"context", "name", "answers": [code], "stratum": length in words, "depth": 0 to 1}.
    """
    documents = []
    for index in range(prompts):
        random = Random(f"{seed}/needle/{index}")
        length, depth = lengths[index % len(lengths)], index // len(lengths) % _DEPTHS / (_DEPTHS - 1)
        names = random.sample(NAMES, distractors + 1)
        codes = [str(code) for code in random.sample(range(1000, 10000), distractors + 1)]
        facts = [f"The code of {name} is {code}." for name, code in zip(names, codes)]
        hay = _hay(random, length - sum(len(fact.split()) for fact in facts))
        for fact in facts[1:]:
            hay.insert(random.randint(0, len(hay)), fact)
        hay.insert(round(depth * len(hay)), facts[0])
        documents.append({"context": " ".join(hay), "name": names[0], "answers": [codes[0]], "stratum": f"{length} words", "depth": depth})
    return {"test": documents}


def chains(*, lengths: Sequence[int], prompts: int, seed: int, hops: int, **_: Any) -> dict[str, list[dict[str, Any]]]:
    """Two chains of assignments in a haystack; asked for are all variables that hold the value at the head of the first.

    Args, returns: as `needles`; a doc has "value" instead of "name", and hops + 1 answers.
    """
    documents = []
    for index in range(prompts):
        random = Random(f"{seed}/chain/{index}")
        length = lengths[index % len(lengths)]
        variables = [f"V{number}" for number in random.sample(range(100, 1000), 2 * (hops + 1))]
        values = [str(value) for value in random.sample(range(10000, 100000), 2)]
        both = [_assignments(variables[:hops + 1], values[0]), _assignments(variables[hops + 1:], values[1])]
        hay = _hay(random, length - sum(len(line.split()) for lines in both for line in lines))
        for lines in both:
            places = sorted(random.randint(0, len(hay)) for _ in lines)
            for done, (place, line) in enumerate(zip(places, lines)):
                hay.insert(place + done, line)  # later places have moved by those before: the chain stays in order
        documents.append({"context": " ".join(hay), "value": values[0], "answers": variables[:hops + 1], "stratum": f"{length} words"})
    return {"test": documents}


def by_length(documents: Dataset) -> Dataset:
    """RULER's rows by the length that they were made for, a power of two: `length` is what each really has, hardly two of them the same."""
    return documents.add_column("stratum", [f"{1 << (length - 1).bit_length()} tokens" for length in documents["length"]])


def recall(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """RULER's metric: the share of the expected strings that occur in the answer, whatever the case."""
    answers = document.get("answers") or document["outputs"]
    said = results[0].lower()
    return {"recall": sum(answer.lower() in said for answer in answers) / len(answers)}


def _assignments(variables: Sequence[str], value: str) -> list[str]:
    return [f"VAR {name} = {previous}." for name, previous in zip(variables, [value, *variables])]


def _hay(random: Random, words: int) -> list[str]:
    """Sentences of six words, as many as fit; at least one."""
    return [f"The {a} is near the {b}." for a, b in (random.sample(NOUNS, 2) for _ in range(max(1, words // 6)))]
