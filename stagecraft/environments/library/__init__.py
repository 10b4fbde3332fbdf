"""The built-in environments, by name."""

from stagecraft.contract.errors import UserError
from stagecraft.environments.api import Environment
from stagecraft.environments.library.code import Code
from stagecraft.environments.library.dialogue import Guess
from stagecraft.environments.library.following import Following
from stagecraft.environments.library.needle import Needle
from stagecraft.environments.library.policy import HousePolicy
from stagecraft.environments.library.puzzles import Arithmetic, Strings, WordProblems
from stagecraft.environments.library.schema import Schema
from stagecraft.environments.library.software import Software
from stagecraft.environments.library.sql import Sql
from stagecraft.environments.library.tools import ToolCall, Warehouse

ENVIRONMENTS: dict[str, Environment] = {each.name: each for each in (
    Arithmetic(), WordProblems(), Strings(), Code(), ToolCall(), Warehouse(), Sql(), Schema(), Following(), Needle(), HousePolicy(),
    Guess(), Software())}


def environment(name: str) -> Environment:
    """The built-in environment of that name.

    Raises:
        UserError: there is none.
    """
    if name not in ENVIRONMENTS:
        raise UserError(f"unknown environment {name!r}", where="environments", mend=f"use one of {', '.join(ENVIRONMENTS)}")
    return ENVIRONMENTS[name]
