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
    return parse_profile(read_text(path, str(path)), str(path))


def read_text(path: Path, shown: str) -> str:
    """A profile's text; `shown` is the name the profile goes by in messages.

    Raises:
        UserError: there is none, or it is not UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UserError(f"cannot read parameters: {error.strerror}", where=shown, mend="give an existing profile") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text: {error.reason} at byte {error.start}", where=shown, mend="save it as UTF-8") from None


def parse_profile(text: str, shown: str) -> dict[str, Any]:
    """A profile's text as plain data.

    Raises:
        UserError: it is not YAML, or not a mapping.
    """
    try:
        data = YAML(typ="safe").load(text)
    except (YAMLError, ValueError) as error:  # the latter of a date that is none
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"not valid YAML: {getattr(error, 'problem', error)}", where=f"{shown}:{mark.line + 1}" if mark else shown,
                        mend="mend the syntax") from None
    if not isinstance(data, dict):
        raise UserError("the profile is not a mapping of stages", where=shown, mend="start from the params.yaml of the repository")
    return data


def section_of(data: Any, name: str, shown: str) -> Any:
    """The section of a profile, or of a section of one, that goes by the name `shown`.

    Raises:
        UserError: there is none.
    """
    if not isinstance(data, dict) or name not in data:
        raise UserError(f"no section {name!r}", where=shown, mend="add it; the repository's params.yaml shows every key")
    return data[name]


def parse(cls: type[Params], data: dict[str, Any], where: str) -> Params:
    """Check plain data against a params dataclass.

    Raises:
        UserError: names the first wrong key as `where.key`, the value found and what was expected.
    """
    try:
        text = json.dumps(data)
    except (TypeError, ValueError) as error:  # a date; a key that is a list; a value that an anchor makes part of itself
        raise UserError(f"no plain values: {error}", where=where,
                        mend="write numbers, texts (a date in quotes), lists and mappings") from None
    try:
        # Through JSON: in strict mode pydantic takes a mapping for a dataclass from JSON alone.
        return TypeAdapter(cls).validate_json(text)
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
    return parse(cls, section_of(read_profile(path), section, str(path)) or {}, f"{path}: {section}")
