"""Instruction following: write given words in exactly the form asked for."""

from __future__ import annotations

from random import Random

from stagecraft.data.tasks.task import Task, text_task
from stagecraft.data.tasks.words import NOUNS

SEPARATORS = {"commas": ",", "dashes": "-", "slashes": "/", "dots": ".", "pluses": "+"}


def format_(random: Random) -> Task:
    """One of four instructions over a few words.

    Flawed: the content is there, the form is not the one asked for - `, ` for every separator, one repetition too many,
    the whole list for the first words of it, the words in the order given for the swap.
    """
    return random.choice((_join, _repeat, _first, _swap))(random)


def _join(random: Random) -> Task:
    name, separator = random.choice(list(SEPARATORS.items()))
    words = random.sample(NOUNS, random.randint(2, 4))
    return text_task(f"Join with {name}: {' '.join(words)}", separator.join(words), ", ".join(words))


def _repeat(random: Random) -> Task:
    words, times = random.sample(NOUNS, 2), random.randint(2, 4)
    pair = " ".join(words)
    return text_task(f"Write {times} times: {pair}", " ".join([pair] * times), " ".join([pair] * (times + 1)))


def _first(random: Random) -> Task:
    words = random.sample(NOUNS, random.randint(3, 5))
    kept = random.randint(1, len(words) - 1)
    return text_task(f"First {kept}: {' '.join(words)}", " ".join(words[:kept]), " ".join(words))


def _swap(random: Random) -> Task:
    first, second = random.sample(NOUNS, 2)
    return text_task(f"Swap: {first} and {second}", f"{second} and {first}", f"{first} and {second}")
