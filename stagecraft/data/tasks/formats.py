"""Instruction following: write given words in exactly the form asked for."""

from __future__ import annotations

from random import Random

from stagecraft.data.tasks.task import Task, text_task
from stagecraft.data.tasks.words import NOUNS

SEPARATORS = {"commas": ",", "dashes": "-", "slashes": "/", "dots": ".", "pluses": "+"}


def format_(random: Random) -> Task:
    """One of four instructions over a few words.

    Flawed: the content is there, the form is not the one asked for - `, ` for every separator, one repetition too many,
    the whole list for the first words of it, the list twice in place of each word twice.
    """
    return random.choice((_join, _repeat, _first, _double))(random)


def _join(random: Random) -> Task:
    name, separator = random.choice(list(SEPARATORS.items()))
    words = random.sample(NOUNS, random.randint(2, 3))
    return text_task(f"Join with {name}: {' '.join(words)}", separator.join(words), ", ".join(words))


def _repeat(random: Random) -> Task:
    words, times = random.sample(NOUNS, random.randint(2, 3)), random.randint(2, 3)
    return text_task(f"Write {times} times: {' '.join(words)}", " ".join(words * times), " ".join(words * (times + 1)))


def _first(random: Random) -> Task:
    words = random.sample(NOUNS, random.randint(3, 4))
    kept = random.randint(1, len(words) - 1)
    return text_task(f"First {kept}: {' '.join(words)}", " ".join(words[:kept]), " ".join(words))


def _double(random: Random) -> Task:
    words = random.sample(NOUNS, 3)
    return text_task(f"Double: {' '.join(words)}", " ".join(f"{word} {word}" for word in words), " ".join(words * 2))
