"""What a model is asked for, and how its reply becomes an item. A reply is data: strictly read, verified like the rest, never trusted."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from random import Random
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.curate.synthetic.families import FAMILIES
from components.curate.synthetic.item import Item, compose
from components.curate.synthetic.references import REFERENCES
from components.curate.synthetic.wording import FIRMS, GOODS, PEOPLE, TOWNS

_LONGEST = 20_000  # characters of a reply
_TESTS = 3         # assertions a function needs
_WORDS = {"code-concepts": 20, "algorithmic": 40, "logic": 40, "multiple-choice": 20, "economics": 40}  # of a solution, at least
Text = Annotated[str, Field(min_length=1, max_length=8000)]
Expression = Annotated[str, Field(min_length=3, max_length=500)]

_EXPRESSION = ("\"expression\": one arithmetic expression over numbers that the problem states, with + - * / // % ** and parentheses, abs, "
               "min, max and floor, whose value is the answer")
_FORMS = {
    "code-concepts": (
        'Write an exercise about a small Python function. Members: "problem", "solution" (why it works, in words), "code" (the function '
        'alone, no imports, no input or output), "asserts" (3 to 6 lines of the form `assert f(...) == literal`).'),
    "algorithmic": (
        'Write an exercise that traces an algorithm on concrete input. Members: "problem" (it states all the input), "solution" (every '
        'step), "function" (one of {functions}), "arguments" (a list of its arguments), "answer" (what the function gives, as text; a list '
        'as "1, 2, 3").'),
    "logic": (
        'Write a logic puzzle with exactly one solution. Members: "problem", "solution", "variables" (an object: name of a person or thing '
        'that the problem names, one word each -> list of the integers or of the truth values it may have), "distinct" (true if no two '
        'have the same value), "constraints" (a list of conditions on the variables, written with == != < <= > >= + - and or not), "asked" '
        '(a value), "answer" (the names with that value in the order of the variables, joined by " and ").'),
    "multiple-choice": (
        'Write a multiple-choice question whose answer is computed. Members: "question" (without the options), "options" (an object with '
        'the members A, B, C, D: a number, perhaps followed by a unit), "solution", ' + _EXPRESSION + ', "answer" (the letter).'),
    "economics": (
        'Write an exercise in economics with worked numbers. Members: "problem", "solution", ' + _EXPRESSION + ', "answer" (a plain '
        'decimal number, rounded to at most two decimals).'),
}
_COMMON = ("Topic: {topic}. Use these words if they fit: {words}. It is exercise number {number}: make it unlike the others. Reply with "
           "one JSON object and nothing else; all members are needed, no others are allowed. State equations between numbers only if they "
           "hold.")


class BadReplyError(ValueError):
    """The reply cannot be used; the message is a reason to count by."""


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    solution: Text


class _Code(_Reply):
    problem: Text
    code: Text
    asserts: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(min_length=_TESTS, max_length=20)]


class _Trace(_Reply):
    problem: Text
    function: Text
    arguments: list[Any]
    answer: Text


class _Puzzle(_Reply):
    problem: Text
    variables: Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")], list[int] | list[bool]], Field(min_length=2, max_length=8)]
    distinct: bool
    constraints: Annotated[list[Expression], Field(min_length=2, max_length=40)]
    asked: int | bool
    answer: Text


class _Options(_Reply):
    question: Text
    options: dict[Literal["A", "B", "C", "D"], Text]
    expression: Expression
    answer: Literal["A", "B", "C", "D"]


class _Numbers(_Reply):
    problem: Text
    expression: Expression
    answer: Text


def request(family: str, number: int, seed: int) -> str:
    """The prompt for exercise `number` of a family; no two are the same."""
    random = Random(f"{seed}/synthetic/{family}/request/{number}")
    words = [random.choice(words) for words in (PEOPLE, TOWNS, GOODS, FIRMS)]
    form = _FORMS[family].replace("{functions}", ", ".join(REFERENCES))
    return f"{form}\n\n{_COMMON.format(topic=random.choice(FAMILIES[family].topics), words=', '.join(words), number=number + 1)}"


def item_of(family: str, number: int, reply: str) -> Item:
    """Read the reply to exercise `number`.

    Raises:
        BadReplyError: it is no JSON object of the family's form, or its data are not about its text.
    """
    if len(reply) > _LONGEST:
        raise BadReplyError("reply_too_long")
    form, make = _MAKERS[family]
    try:
        found = form.model_validate_json(reply)
        if len(found.solution.split()) < _WORDS[family]:
            raise BadReplyError("solution_too_short")
        return make(Random(f"layout/{family}/{number}"), found)
    except ValidationError as error:
        raise BadReplyError("reply_not_json" if error.errors()[0]["type"] == "json_invalid" else "reply_of_wrong_form") from None
    except RecursionError:
        raise BadReplyError("reply_of_wrong_form") from None


def _code(random: Random, found: _Code) -> Item:
    call, value = _tested(found)
    tests = "\n".join(found.asserts)
    code = found.code.strip("\n") + "\n"
    document = (f"{found.problem}\n\n{found.solution}\n\n```python\n{code}```\n\n```python\n{tests}\n```\n\n"
                f"In particular the value of `{call}` is {value}.\n")
    prompt = f"Here is a Python function.\n\n{code}\nWhat does `{call}` return? Answer with the value alone, as Python shows it."
    return Item("code-concepts", "by a model", document, prompt, found.solution, value,
                {"kind": "program", "code": code, "asserts": found.asserts})


def _tested(found: _Code) -> tuple[str, str]:
    """The last call that is tested and its value; every assertion must compare a call of a function of the code with a literal."""
    try:
        functions = {node.name for node in ast.parse(found.code).body if isinstance(node, ast.FunctionDef)}
        trees = [ast.parse(line).body for line in found.asserts]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise BadReplyError("code_cannot_be_parsed") from None
    for body in trees:
        match body:
            case [ast.Assert(test=ast.Compare(left=ast.Call(func=ast.Name(id=name)) as call, ops=[ast.Eq()], comparators=[right]))] \
                    if name in functions:
                try:
                    value = ast.literal_eval(right)
                except (ValueError, TypeError, RecursionError, MemoryError):
                    raise BadReplyError("asserts_of_wrong_form") from None
            case _:
                raise BadReplyError("asserts_of_wrong_form")
    if len({ast.dump(body[0]) for body in trees}) < _TESTS:
        raise BadReplyError("asserts_of_wrong_form")
    return ast.unparse(call), repr(value)


def _trace(random: Random, found: _Trace) -> Item:
    return _posed(random, "algorithmic", found.problem, found.solution, found.answer,
                  {"kind": "reference", "function": found.function, "arguments": found.arguments})


def _puzzle(random: Random, found: _Puzzle) -> Item:
    missing = [name for name in found.variables if not re.search(rf"\b{name}\b", found.problem)]
    if missing:
        raise BadReplyError("input_not_stated")
    return _posed(random, "logic", found.problem, found.solution, found.answer, {
        "kind": "models", "variables": found.variables, "distinct": found.distinct, "constraints": found.constraints,
        "ask": {"where": found.asked}})


def _options(random: Random, found: _Options) -> Item:
    options = dict(sorted(found.options.items()))
    text = f"{found.question}\n\n" + "\n".join(f"{letter}) {option}" for letter, option in options.items())
    return _posed(random, "multiple-choice", text, found.solution, found.answer,
                  {"kind": "choice", "options": options, "expression": found.expression}, "Answer with the letter alone.")


def _numbers(random: Random, found: _Numbers) -> Item:
    return _posed(random, "economics", found.problem, found.solution, found.answer, {"kind": "value", "expression": found.expression},
                  "Answer with the number alone.")


def _posed(random: Random, family: str, problem: str, solution: str, answer: str, check: dict[str, Any], form: str = "") -> Item:
    return Item(family, "by a model", compose(random, problem, solution, answer), f"{problem}\n\n{form}".rstrip(), solution, answer, check)


_MAKERS: dict[str, tuple[type[_Reply], Callable[[Random, Any], Item]]] = {
    "code-concepts": (_Code, _code), "algorithmic": (_Trace, _trace), "logic": (_Puzzle, _puzzle), "multiple-choice": (_Options, _options),
    "economics": (_Numbers, _numbers),
}
