"""params.yaml -> typed dataclasses that reject unknown keys, wrong types and impossible values with one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as _pydantic_dataclass
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stagecraft.contract.errors import UserError

Params = TypeVar("Params")

PROFILE = Path("params.yaml")  # what DVC and Kubeflow Pipelines know a run by
VARIABLE = "STAGECRAFT_PARAMS"
_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def params(cls: type[Params]) -> type[Params]:
    """Class decorator: a frozen, keyword-only dataclass whose fields are checked strictly (no str -> int and the like)."""
    return _pydantic_dataclass(cls, config=_STRICT, kw_only=True)


def params_path() -> Path:
    """The profile in force: `$STAGECRAFT_PARAMS`, else params.yaml."""
    return Path(os.environ.get(VARIABLE) or PROFILE)


def refuse_another_profile(who: str) -> None:
    """Stop where the variable names another file than params.yaml (here, in the project's root), and `who` records the run by the latter.

    Raises:
        UserError: it does; the run would be recorded under numbers that it was not computed with.
    """
    if params_path().resolve() != PROFILE.resolve():
        raise UserError(f"{who} goes by {PROFILE} alone (found {params_path()})", where=f"${VARIABLE}",
                        mend="unset it; kfp run FILE.py --profile makes a profile params.yaml")


def read_profile(path: Path | None = None) -> dict[str, Any]:
    """Read a whole profile as plain data. YAML 1.2 rules: `3e-4` is a number.

    Raises:
        UserError: the file is missing, is not YAML, or is not a mapping.
    """
    path = path or params_path()
    try:
        data = YAML(typ="safe").load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read parameters: {error.strerror}", where=str(path), mend="give an existing profile") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"not valid YAML: {getattr(error, 'problem', error)}", where=f"{path}{line}", mend="mend the syntax") from None
    if not isinstance(data, dict):
        raise UserError("the profile is not a mapping of stages", where=str(path), mend="start from the params.yaml of the repository")
    return data


def parse(cls: type[Params], data: dict[str, Any], where: str) -> Params:
    """Check plain data against a params dataclass.

    Raises:
        UserError: names the first wrong key as `where.key`, the value found and what was expected.
    """
    try:
        # Through JSON: in strict mode pydantic takes a mapping for a dataclass from JSON alone.
        return TypeAdapter(cls).validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        unknown = [e for e in errors if e["type"] in ("unexpected_keyword_argument", "extra_forbidden")]
        first = (unknown or errors)[0]  # a misspelt key also counts as missing: name the spelling that was found
        key = ".".join(str(part) for part in (where, *first["loc"]))
        found, kind = first.get("input"), first["type"]
        if unknown:
            raise UserError("unknown key", where=key, mend="remove it or correct its spelling") from None
        if kind in ("missing", "missing_argument"):
            raise UserError("missing", where=key, mend="add it; the repository's params.yaml shows every key") from None
        what = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        shown = f" (found {found!r})" if isinstance(found, (str, int, float, bool, type(None))) else ""
        raise UserError(f"{what}{shown}", where=key, mend="correct the value") from None


def load(cls: type[Params], section: str, path: Path | None = None) -> Params:
    """Read one stage's section of the profile into its dataclass."""
    path = path or params_path()
    profile = read_profile(path)
    if section not in profile:
        raise UserError(f"no section {section!r}", where=str(path), mend="add it; the repository's params.yaml shows every key")
    return parse(cls, profile[section] or {}, f"{path}: {section}")
