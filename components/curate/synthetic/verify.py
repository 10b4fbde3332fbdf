"""Verifies an item from its text and its data alone: nothing of what made it takes part."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise, permutations, product
from math import perm, prod
from typing import Any

from components.curate.synthetic.expressions import ExpressionError, Value, evaluate, number, shown_as
from components.curate.synthetic.item import Item
from components.curate.synthetic.references import UnknownReferenceError, reference
from stagecraft.data.tokenizer import MARKERS, SPECIAL
from stagecraft.environments.sandbox import run_confined, run_here

_TOKEN = re.compile(r"(?P<number>\$?(?<![\w.])\d+(?:\.\d+)?(?!\w))|(?P<sign>\*\*|[-+*/)]|(?<!\w)\(|\bmod\b)|(?P<equal>(?<![=<>!])=(?!=))"
                    r"|(?P<other>\S)")
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d]+")
_NAMES = {"abs", "min", "max", "floor"}
_CONSTANTS = {"0", "1", "2", "3", "4", "7", "10", "12", "24", "52", "60", "100", "180", "360", "365", "1000", "3600"}  # need not be stated
_ASSIGNMENTS = 10_000  # looked at in a puzzle


def failure(item: Item, trusted: bool) -> str | None:
    """Why an item must not be used, as a reason to count by; None if it is verified.

    Args:
        trusted: its code, if any, was written by our templates; other code runs in a sandbox or not at all.
    """
    if not item.document.rstrip().removesuffix(".").endswith(f" {item.answer}"):
        return "answer_not_stated"
    if any(mark in item.document or mark in item.prompt for mark in (*SPECIAL, *MARKERS)):
        return "control_markup"
    if item.check["kind"] != "program" and any(not holds for _, holds in equalities(item.document)):
        return "false_equation"
    if not _stated(item, trusted):
        return "input_not_stated"
    try:
        return _CHECKS[item.check["kind"]](item, trusted)
    except (ExpressionError, UnknownReferenceError):
        return "not_checkable"


def _stated(item: Item, trusted: bool) -> bool:
    """Whether what the check starts from stands in the problem: the input of an algorithm, and the numbers of a model's expression,
    which must be a calculation and not the answer itself."""
    said = set(_WORD.findall(item.prompt))
    if item.check["kind"] == "reference":
        return set(_WORD.findall(str(item.check["arguments"]))) <= said
    if trusted or "expression" not in item.check:
        return True
    numbers = set(_WORD.findall(item.check["expression"])) - _NAMES
    return len(numbers & said) >= 2 and numbers <= said | _CONSTANTS and item.answer not in numbers


def equalities(text: str) -> Iterator[tuple[str, bool]]:
    """The equations between numbers that a text states (`12 * 5 + 3 = 63`), and whether each holds to the figures shown.

    `mod` is the remainder. A side with a letter in it is no number, and what stands beside it is not checked.
    """
    run: list[tuple[str, str]] = []
    for kind, token in [*((match.lastgroup, match[0]) for match in _TOKEN.finditer(text)), ("other", "")]:
        if kind != "other":
            run.append((kind, token))
            continue
        yield from _chain(run)
        run = []


def _chain(run: list[tuple[str, str]]) -> Iterator[tuple[str, bool]]:
    sides: list[list[str]] = [[]]
    for kind, token in run:
        if kind == "equal":
            sides.append([])
        else:
            sides[-1].append({"mod": "%"}.get(token, token.removeprefix("$")))
    for left, right in pairwise(sides):
        if not left or not right or left[0] in ("+", "-", "*", "/") or "**" in (left[0], right[0]):
            continue
        try:
            one, two = evaluate(" ".join(left)), evaluate(" ".join(right))
        except ExpressionError:
            continue
        shown = "".join(right)
        yield f"{' '.join(left)} = {' '.join(right)}", shown_as(shown, one) if re.fullmatch(r"-?\d+(\.\d+)?", shown) else one == two


def _value(item: Item, trusted: bool) -> str | None:
    """The answer is the value of an expression."""
    return None if _shows(item.answer, evaluate(item.check["expression"])) else "wrong_answer"


def _holds(item: Item, trusted: bool) -> str | None:
    """The answer, put into conditions together with other stated values, makes all of them true."""
    values: dict[str, Value] = {name: number(value) for name, value in item.check["values"].items()}
    values["answer"] = number(item.answer)
    return None if all(evaluate(condition, values) is True for condition in item.check["conditions"]) else "wrong_answer"


def _pick(item: Item, trusted: bool) -> str | None:
    """The answer names the option whose value is the least or the most, and only one is."""
    values = {name: evaluate(expression) for name, expression in item.check["options"].items()}
    best = (min if item.check["by"] == "least" else max)(values.values())
    found = [name for name, value in values.items() if value == best]
    if len(found) != 1:
        return "ambiguous"
    return None if found == [item.answer] else "wrong_answer"


def _choice(item: Item, trusted: bool) -> str | None:
    """The answer is the letter of the one option that shows the value of an expression, and the document lists the options so."""
    value, options = evaluate(item.check["expression"]), item.check["options"]
    if len(options) != 4 or any(not re.search(rf"\b{letter}[).:] *{re.escape(text)}(?![\d.]*\d)", item.document)
                                for letter, text in options.items()):
        return "options_not_stated"
    found = [letter for letter, text in options.items() if _shows(text.partition(" ")[0].removeprefix("$"), value)]
    if len(found) != 1:
        return "ambiguous" if found else "wrong_answer"
    return None if found == [item.answer] else "wrong_answer"


def _models(item: Item, trusted: bool) -> str | None:
    """All assignments of a puzzle are tried: the answer must be what the ones that fit say, and alone say."""
    check = item.check
    found = list(models(check))
    ask = check["ask"]
    if "count" in ask:
        return None if item.answer == str(len(found)) else "wrong_answer"
    if "entails" in ask:
        if not found:
            return "contradictory"
        follows = all(evaluate(ask["entails"], model) is True for model in found)
        return None if item.answer == ("yes" if follows else "no") else "wrong_answer"
    if len(found) != 1:
        return "ambiguous" if found else "contradictory"
    return None if item.answer == _asked(ask, found[0]) else "wrong_answer"


def models(check: dict[str, Any]) -> Iterator[dict[str, Value]]:
    """The assignments of values to variables that meet all constraints of a puzzle.

    Raises:
        ExpressionError: a constraint cannot be evaluated, or there are none or more than 10,000 assignments.
    """
    names = list(check["variables"])
    domains = [[Fraction(value) if isinstance(value, int) and not isinstance(value, bool) else value for value in values]
               for values in check["variables"].values()]
    permuted = check.get("distinct") and all(domain == domains[0] for domain in domains)
    size = perm(len(domains[0]), len(names)) if permuted else prod(map(len, domains))
    if not 0 < size <= _ASSIGNMENTS:
        raise ExpressionError(f"{size} assignments")
    every = permutations(domains[0], len(names)) if permuted else product(*domains)
    for values in every:
        if check.get("distinct") and len(set(values)) < len(values):
            continue
        model = dict(zip(names, values))
        if all(evaluate(constraint, model) is True for constraint in check["constraints"]):
            yield model


def _asked(ask: dict[str, Any], model: dict[str, Value]) -> str:
    match ask:
        case {"order": True}:
            return ", ".join(sorted(model, key=model.__getitem__))
        case {"of": name} if name in model:
            return str(model[name])
        case {"where": value}:
            return " and ".join(name for name in model if model[name] == value) or "nobody"
    raise ExpressionError(f"unknown question {ask}")


def _reference(item: Item, trusted: bool) -> str | None:
    """The answer is what another algorithm finds for the same input."""
    return None if item.answer == reference(item.check["function"], item.check["arguments"]) else "wrong_answer"


def _program(item: Item, trusted: bool) -> str | None:
    """The code passes its assertions, and is in the document as it ran."""
    code = item.check["code"]
    if code.strip() not in item.document:
        return "code_not_stated"
    return (run_here if trusted else run_confined)(code, item.check["asserts"])


def _shows(text: str, value: Value) -> bool:
    if isinstance(value, bool) or not isinstance(value, Fraction):
        raise ExpressionError(f"{value!r} is no number")
    return shown_as(text, value)


_CHECKS: dict[str, Callable[[Item, bool], str | None]] = {
    "value": _value, "holds": _holds, "pick": _pick, "choice": _choice, "models": _models, "reference": _reference, "program": _program,
}
