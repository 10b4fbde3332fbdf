"""Changes to a profile that keep its comments: overrides from the command line, a section that came with a KFP task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stagecraft.contract.errors import UserError
from stagecraft.contract.files import write_atomic
from stagecraft.contract.params import parse_profile, read_text


def override(text: str, assignments: Sequence[str], shown: str = "params.yaml") -> tuple[str, list[str]]:
    """Apply `section.key=value` assignments to the text of the profile `shown`; comments and layout stay.

    Returns:
        the new text, and one line per changed value (`pretrain.steps: 500 -> 10`).

    Raises:
        UserError: an assignment that is none, an unknown key, a value that is not YAML; a text that is no profile.
    """
    parse_profile(text, shown)
    yaml = _round_trip()
    data = yaml.load(text)
    changes = []
    for assignment in assignments:
        name, equals, raw = assignment.partition("=")
        if not equals or not name:
            raise UserError("not an override", where=repr(assignment), mend="write NAME=VALUE, as in pretrain.steps=100")
        *parents, key = name.split(".")
        node = data
        for parent in parents:
            node = node.get(parent) if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping) or key not in node:
            raise UserError("unknown parameter", where=name, mend="params.yaml shows every key; write it as stage.key=value")
        try:
            value = YAML(typ="safe").load(raw)
        except (YAMLError, ValueError):
            raise UserError(f"not a YAML value: {raw!r}", where=name, mend="quote it") from None
        if node[key] != value:
            changes.append(f"{name}: {_inline(node[key])} -> {_inline(value)}")
            node[key] = value
    return (_dump(yaml, data), changes) if changes else (text, changes)


def with_section(text: str, section: str, values: Mapping[str, Any], shown: str = "params.yaml") -> str:
    """The text of the profile `shown` with one section equal to `values`: the same text if it already is."""
    if parse_profile(text, shown).get(section) == values:
        return text
    yaml = _round_trip()
    data = yaml.load(text)
    data[section] = dict(values)
    return _dump(yaml, data)


def replace_section(path: Path, section: str, values: Mapping[str, Any]) -> None:
    """Make one section of a profile equal to `values`; nothing is written when it already is."""
    before = read_text(path, str(path))
    if (text := with_section(before, section, values, str(path))) != before:
        write_atomic(path, text)


def _round_trip() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    return yaml


def _dump(yaml: YAML, data: Any) -> str:
    stream = StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()


def _inline(value: Any) -> str:
    return str(dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, list) else value)
