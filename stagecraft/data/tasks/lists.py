"""Tasks on short lists: reversing, sorting, counting and looking a value up."""

from __future__ import annotations

from random import Random

from stagecraft.data.tasks.task import Task, assistant, text_task
from stagecraft.data.tasks.words import NOUNS


def reverse(random: Random) -> Task:
    """Three to five distinct words in reverse order. Flawed: the words are copied in the order given."""
    words = random.sample(NOUNS, random.randint(3, 5))
    return text_task(f"Reverse: {' '.join(words)}", " ".join(reversed(words)), " ".join(words))


def sort(random: Random) -> Task:
    """Three to five distinct numbers below 100, ascending. Flawed: descending."""
    numbers = random.sample(range(100), random.randint(3, 5))
    ascending = sorted(numbers)
    return text_task(f"Sort: {_join(numbers)}", _join(ascending), _join(reversed(ascending)))


def count(random: Random) -> Task:
    """How often a word occurs in a list of three to seven words. Flawed: the length of the list."""
    word, other = random.sample(NOUNS, 2)
    length = random.randint(3, 7)
    wanted = random.randint(1, min(length - 1, 5))
    words = [word] * wanted + [other] * (length - wanted)
    random.shuffle(words)
    prompt = f"Count {word}: {' '.join(words)}"
    return Task(prompt, {"kind": "number", "answer": wanted}, assistant(str(wanted)), assistant(str(length)))


def lookup(random: Random) -> Task:
    """The value of one key of a table of three or four. Flawed: the value of the key before it in the table (the last, for the first)."""
    keys = random.sample(NOUNS, random.randint(3, 4))
    values = random.sample(range(10, 100), len(keys))
    asked = random.randrange(len(keys))
    table = " ".join(f"{key}={value}" for key, value in zip(keys, values))
    return text_task(f"{table} Get {keys[asked]}", str(values[asked]), str(values[asked - 1]))


def _join(numbers: object) -> str:
    return " ".join(map(str, numbers))
