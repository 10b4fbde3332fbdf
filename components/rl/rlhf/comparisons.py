"""What a generative reward model is asked, what it answers, and comparisons to learn that from, made with the verifiers' help."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from stagecraft.data.tasks import FAMILIES
from stagecraft.data.tasks.task import Task
from stagecraft.environments import verify
from stagecraft.environments.verify import THINK, split_thinking

WORST, BEST = 1, 5
FORM = ", of the first and of the second, as two numbers with a blank between them and nothing after them"
# At the end of an answer, alone: neither part of a number, fraction or decimal, nor the last two of three.
_SCORES = re.compile(r"(?<![\w.,;/-])(?<!\d\s)(?<!\d[,;]\s)([1-5])(?:\s*[,;]\s*|\s+)([1-5])[\s.*)\]}]*\Z")
_SAME = 0.2  # share of comparisons between two answers of one worth


@dataclass(frozen=True)
class Comparison:
    """Two answers to a request, with the scores that they deserve."""

    request: str
    answers: tuple[str, str]
    scores: tuple[int, int]


def question(principle: str, request: str, answers: Sequence[str], form: str = "") -> str:
    """The judge's request: a principle, what was asked, both answers as the user sees them, without their thinking.

    Args:
        form: in which to answer; `FORM` for a judge that was not taught it.
    """
    first, second = (answer_of(text) for text in answers)
    return f"Principle: {principle}\nRequest: {request}\nFirst: {first}\nSecond: {second}\nScores from {WORST} to {BEST}{form}:"


def verdict(text: str) -> tuple[int, int] | None:
    """The two scores that a judge's answer ends with, a blank, comma or semicolon between them; None if it ends otherwise."""
    found = _SCORES.search(answer_of(text))
    return (int(found[1]), int(found[2])) if found else None


def answer_of(text: str) -> str:
    """What follows the thinking; all of a text whose thinking is malformed."""
    halves = split_thinking(text)
    return (halves[1] if halves else text).strip()


def comparisons(count: int, seed: str, families: Sequence[str]) -> Iterator[Comparison]:
    """Distinct requests of the task families with two answers each, scored by whether they verify.

    Wrong ones are flawed, spoilt, cut short, of another request, or words at random: a policy that strays says such things, and of what it
    never saw a judge has no opinion that is worth following.
    """
    random, seen = Random(seed), set()
    while len(seen) < count:
        family = random.choice(families)
        task = FAMILIES[family](random)
        if task.prompt in seen:
            continue
        seen.add(task.prompt)
        words = answer_of(task.good).split()
        tried = (task.flawed, _spoilt(task.good, random), " ".join(words[:random.randrange(len(words))]), FAMILIES[family](random).good,
                 " ".join(random.choices([*words, *task.prompt.split()], k=random.randint(1, 2 * len(words)))))
        right, wrong = [task.good], [text for text in tried if not _is_right(task, text)]
        if random.random() < _SAME:
            pair = random.choices(random.choice([right, wrong]), k=2)
        else:
            pair = [random.choice(right), random.choice(wrong)]
            random.shuffle(pair)
        scores = [BEST if _is_right(task, text) else WORST for text in pair]
        yield Comparison(task.prompt, (pair[0], pair[1]), (scores[0], scores[1]))


def _is_right(task: Task, text: str) -> bool:
    return verify({"verifier": task.verifier}, text).score == 1


def _spoilt(text: str, random: Random) -> str:
    """The answer with two of its words exchanged, or its last character doubled if it is one word."""
    head, _, answer = text.rpartition("</think>")
    words = answer.split()
    if len(words) > 1:
        first, second = random.sample(range(len(words)), 2)
        words[first], words[second] = words[second], words[first]
    else:
        words = [words[0] + words[0][-1]]
    return (f"{head}</think> " if text.startswith(THINK) else "") + " ".join(words)
