"""Arithmetic: two- and three-digit addition and subtraction, worked digit by digit inside the think block."""

from __future__ import annotations

from random import Random

from stagecraft.data.tasks.task import Task, assistant

_TWO_DIGIT_SHARE = 0.9
_SUM_SHARE = 0.6


def arithmetic(random: Random) -> Task:
    """`347+58=?` with the working `7+8=15 4+5+1=10 3+0+1=4`, units first; differences are never negative.

    The flawed demonstration gives the right answer without working: nothing in it is wrong, but a small model can
    hardly learn to add in its head, so it teaches a habit that fails.
    """
    high = 99 if random.random() < _TWO_DIGIT_SHARE else 999
    a, b = random.randint(10, high), random.randint(10, high)
    if random.random() < _SUM_SHARE:
        prompt, answer, working = f"{a}+{b}=?", a + b, working_of_sum(a, b)
    else:
        a, b = max(a, b), min(a, b)
        prompt, answer, working = f"{a}-{b}=?", a - b, working_of_difference(a, b)
    return Task(prompt, {"kind": "number", "answer": answer}, assistant(str(answer), working), assistant(str(answer)))


def working_of_sum(a: int, b: int) -> str:
    """Column sums, units first; a carry appears as `+1` in the next column."""
    steps, carry = [], 0
    for x, y in _columns(a, b):
        total = x + y + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry = total // 10
    return " ".join(steps)


def working_of_difference(a: int, b: int) -> str:
    """Column differences for a >= b, units first; the upper digit is shown after borrowing (`12-8=4 3-1=2`)."""
    steps, borrow = [], 0
    for x, y in _columns(a, b):
        upper = x - borrow
        borrow = int(upper < y)
        upper += 10 * borrow
        steps.append(f"{upper}-{y}={upper - y}")
    return " ".join(steps)


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    width = max(len(str(a)), len(str(b)))
    return [(a // 10**place % 10, b // 10**place % 10) for place in range(width)]
