"""Tasks on short lists: reversing, sorting and looking a value up."""

from __future__ import annotations

from random import Random

from stagecraft.data.tasks.task import Task, text_task
from stagecraft.data.tasks.words import NOUNS

_THREE_WORDS_SHARE = 0.75


def reverse(random: Random) -> Task:
    """Three or four distinct words in reverse order. Flawed: the words are copied in the order given."""
    words = random.sample(NOUNS, 3 if random.random() < _THREE_WORDS_SHARE else 4)
    return text_task(f"Reverse: {' '.join(words)}", " ".join(reversed(words)), " ".join(words))


def sort(random: Random) -> Task:
    """Four to six distinct digits, ascending. Flawed: descending."""
    numbers = random.sample(range(10), random.randint(4, 6))
    ascending = sorted(numbers)
    return text_task(f"Sort: {_join(numbers)}", _join(ascending), _join(reversed(ascending)))


def lookup(random: Random) -> Task:
    """The value of one key of a table of three, a digit. Flawed: the value of the key before it in the table (the last, for the first)."""
    keys = random.sample(NOUNS, 3)
    values = random.sample(range(10), len(keys))
    asked = random.randrange(len(keys))
    table = " ".join(f"{key}={value}" for key, value in zip(keys, values))
    return text_task(f"Table: {table} Get {keys[asked]}", str(values[asked]), str(values[asked - 1]))


def _join(numbers: object) -> str:
    return " ".join(map(str, numbers))
