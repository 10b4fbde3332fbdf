"""The families of verifiable tasks, and the flaw that each one's weak demonstrations have.

**The demonstrations are of mixed quality on purpose.** A stated share of each family's demonstrations answers in the
family's flawed style: wrong in a systematic way, or (arithmetic) right but without the working that makes it learnable.
Trained on good demonstrations alone a small model masters these tasks by imitation and reinforcement learning has
nothing left to teach; trained on the mixture it knows the right way and the wrong one, answers now so, now so, and the
verifier's reward decides. That is the situation of real instruction data; here it is made, and said, openly.
"""

from __future__ import annotations

from collections.abc import Callable
from math import perm
from random import Random

from stagecraft.data.tasks.arithmetic import arithmetic
from stagecraft.data.tasks.formats import SEPARATORS, format_
from stagecraft.data.tasks.lists import lookup, reverse, sort
from stagecraft.data.tasks.task import Task
from stagecraft.data.tasks.tools import tool
from stagecraft.data.tasks.words import CITIES, NAMES, NOUNS

FAMILIES: dict[str, Callable[[Random], Task]] = {
    "arithmetic": arithmetic,
    "reverse": reverse,
    "sort": sort,
    "lookup": lookup,
    "format": format_,
    "tool": tool,
}

_PAIRS, _TRIPLES, _FOURS = (perm(len(NOUNS), count) for count in (2, 3, 4))  # of words, in an order
# Distinct prompts of each family, kind by kind as its file draws them.
PROMPTS: dict[str, int] = {
    "arithmetic": 990 * 990 + 990 * 991 // 2,
    "reverse": _TRIPLES + _FOURS,
    "sort": perm(10, 4) + perm(10, 5) + perm(10, 6),
    "lookup": 3 * _TRIPLES * perm(10, 3),
    "format": (len(SEPARATORS) + 2) * (_PAIRS + _TRIPLES) + 2 * _TRIPLES + 3 * _FOURS + _TRIPLES,
    "tool": 999 * len(NAMES) + 12 * 28 * len(CITIES) + 24 * 12 * len(NOUNS) + 98 * len(NOUNS),
}

# What is the matter with the flawed demonstrations: (mode, in words). The mode marks rows of sft.jsonl.
FLAWS: dict[str, tuple[str, str]] = {
    "arithmetic": ("no-working", "the right answer without the working"),
    "reverse": ("copied", "the words in the order given"),
    "sort": ("descending", "descending order"),
    "lookup": ("neighbour", "the value of the neighbouring key"),
    "format": ("other-form", "the words in another form than the one asked for"),
    "tool": ("wrong-key", "a tool call with the key `args` in place of `arguments`"),
}
GOOD = "good"
