"""Arithmetic and logic written as text, evaluated exactly and safely: rational numbers, no calls but four, bounded work."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

Value = Fraction | bool | str
_CHARACTERS, _BITS = 1000, 20_000  # of an expression; of a numerator or denominator
_DECIMAL = re.compile(r"-?\d+(?:\.\d+)?")
_FUNCTIONS: dict[str, Callable[..., Any]] = {"abs": abs, "min": min, "max": max, "floor": lambda value: Fraction(math.floor(value))}
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: lambda left, right: Fraction(left // right), ast.Mod: operator.mod,
}
_COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}


class ExpressionError(ValueError):
    """The text is no expression of this language, or cannot be evaluated."""


def evaluate(expression: str, values: Mapping[str, Value] | None = None) -> Value:
    """The value of an expression: + - * / // % **, comparisons, and, or, not, if-else, abs, min, max, floor.

    Decimal literals are exact: 0.1 is a tenth.

    Args:
        values: of the names in it.

    Raises:
        ExpressionError: anything else, an unknown name, division by zero, numbers beyond 20,000 bits.
    """
    try:
        return _value(_parse(expression), expression, values or {})
    except (ArithmeticError, TypeError, RecursionError) as error:
        raise ExpressionError(f"{expression!r}: {error}") from None


def number(text: str) -> Fraction:
    """A plain decimal number, exactly.

    Raises:
        ExpressionError: the text is none.
    """
    if not _DECIMAL.fullmatch(text) or len(text) > 100:
        raise ExpressionError(f"{text!r} is no decimal number")
    return Fraction(text)


def shown_as(text: str, value: Fraction) -> bool:
    """Whether a decimal number is `value` to the figures it shows; an integer shows all of its value."""
    decimals = len(text.partition(".")[2])
    return abs(number(text) - value) <= (Fraction(1, 2 * 10**decimals) if decimals else 0)


@lru_cache(maxsize=4096)
def _parse(expression: str) -> ast.expr:
    if not isinstance(expression, str) or len(expression) > _CHARACTERS:
        raise ExpressionError(f"an expression of more than {_CHARACTERS} characters")
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ExpressionError(f"{expression!r} cannot be parsed") from None


def _value(node: ast.expr, source: str, values: Mapping[str, Value]) -> Any:
    match node:
        case ast.Constant(value=bool() as constant):
            return constant
        case ast.Constant(value=int() | float()):
            return number(ast.get_source_segment(source.strip(), node) or "")
        case ast.Constant(value=str() as constant):
            return constant
        case ast.Name(id=name):
            if name not in values:
                raise ExpressionError(f"{name!r} has no value")
            return values[name]
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left, source, values), _value(right, source, values))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _bounded(_BINARY[type(op)](_numeric(_value(left, source, values)), _numeric(_value(right, source, values))))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_numeric(_value(operand, source, values))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _truth(_value(operand, source, values))
        case ast.BoolOp(op=op, values=operands):
            found = (_truth(_value(operand, source, values)) for operand in operands)
            return all(found) if isinstance(op, ast.And) else any(found)
        case ast.Compare(left=left, ops=ops, comparators=comparators) if all(type(op) in _COMPARISONS for op in ops):
            sides = [_value(each, source, values) for each in (left, *comparators)]
            return all(_COMPARISONS[type(op)](one, two) for op, one, two in zip(ops, sides, sides[1:]))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body if _truth(_value(test, source, values)) else orelse, source, values)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS and arguments:
            return _FUNCTIONS[name](*(_numeric(_value(argument, source, values)) for argument in arguments))
    raise ExpressionError(f"{source!r} uses {type(node).__name__}")


def _power(base: Any, exponent: Any) -> Fraction:
    base, exponent = _numeric(base), _numeric(exponent)
    if exponent.denominator != 1 or abs(exponent) * max(base.numerator.bit_length(), base.denominator.bit_length()) > _BITS:
        raise ExpressionError("a power out of bounds")
    return base ** int(exponent)


def _numeric(value: Any) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, Fraction):
        raise ExpressionError(f"{value!r} is no number")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ExpressionError(f"{value!r} is neither true nor false")
    return value


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _BITS:
        raise ExpressionError("a number out of bounds")
    return value
