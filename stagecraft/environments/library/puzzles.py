"""Arithmetic, word problems and algorithms on lists and strings: one exact answer each."""

from __future__ import annotations

from itertools import groupby
from random import Random
from typing import Any

from stagecraft.data.tasks.families import FAMILIES
from stagecraft.data.tasks.words import NAMES, NOUNS
from stagecraft.environments.api import Row
from stagecraft.environments.library.single import SingleTurn
from stagecraft.environments.verifiers import verify_number, verify_text


class _Number(SingleTurn):
    def judge(self, expected: Any, answer: str) -> dict[str, float]:
        return verify_number({"answer": expected}, answer)

    def reference(self, row: Row) -> list[str]:
        return [str(row["expected"])]

    def near_misses(self, row: Row) -> list[list[str]]:
        right = row["expected"]
        return [[text] for text in (str(right + 1), f"{right}.0", f"0{right}", f"It is {right}", "", f"<think>{right}</think>")]


class Arithmetic(_Number):
    """Sums and differences of two numbers."""

    name = "arithmetic"

    def draw(self, random: Random) -> Row:
        """As in `Environment`."""
        task = FAMILIES["arithmetic"](random)
        return self.row(task.prompt, expected=task.verifier["answer"])


class WordProblems(_Number):
    """Two or three steps of arithmetic told as a story."""

    name = "word_problems"

    def draw(self, random: Random) -> Row:
        """As in `Environment`."""
        name, other = random.sample(NAMES, 2)
        thing = random.choice(NOUNS)
        start, bought, boxes, each = random.randint(20, 60), random.randint(2, 30), random.randint(2, 6), random.randint(2, 9)
        given = random.randint(1, start)
        told, answer = random.choice([
            (f"{name} has {start} {thing}s and buys {bought} more. Then {name} gives {given} to {other}.", start + bought - given),
            (f"{name} has {boxes} boxes of {each} {thing}s, and {bought} {thing}s beside them.", boxes * each + bought),
            (f"{name} has {start} {thing}s. {other} brings {boxes} boxes of {each}, and takes {given} {thing}s away.",
             start + boxes * each - given)])
        return self.row(f"{told} How many {thing}s does {name} have now? Answer with the number alone.", expected=answer)


class Strings(SingleTurn):
    """Sorting, and algorithms on strings."""

    name = "strings"

    def draw(self, random: Random) -> Row:
        """As in `Environment`."""
        words = random.sample(NOUNS, random.randint(4, 6))
        letters = "".join(random.choice("abc") for _ in range(random.randint(6, 10)))
        prompt, answer = random.choice([
            (f"Sort by the alphabet: {' '.join(words)}", " ".join(sorted(words))),
            (f"Sort by length, words of one length in the order given: {' '.join(words)}", " ".join(sorted(words, key=len))),
            (f"Write backwards, letter by letter: {' '.join(words[:2])}", " ".join(words[:2])[::-1]),
            (f"Write each run of a letter as the letter and its length: {letters}",
             "".join(f"{letter}{len(list(run))}" for letter, run in groupby(letters))),
            (f"Keep the first of every letter, in order: {letters}", "".join(dict.fromkeys(letters)))])
        return self.row(f"{prompt}\nAnswer with the result alone.", expected=answer)

    def judge(self, expected: Any, answer: str) -> dict[str, float]:
        """As in `SingleTurn`."""
        return verify_text({"answer": expected}, answer)

    def reference(self, row: Row) -> list[str]:
        """As in `Environment`."""
        return [row["expected"]]

    def near_misses(self, row: Row) -> list[list[str]]:
        """As in `Environment`."""
        right = row["expected"]
        return [[right[:-1]], [right + "a"], [right.upper()], [f"The result is {right}"], [""]]
