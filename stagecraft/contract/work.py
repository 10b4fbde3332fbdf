"""What makes two attempts at a stage the same work: whoever comes second goes on where the first was ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from stagecraft.contract.files import digest_of


def work_key(params: Any, inputs: dict[str, str], code: str = "") -> str:
    """Digest of a stage's parameters, but for where it is done and how safely (`PLACEMENT` of the parameters and of their groups), of its
    inputs' digests and of its code's."""
    return digest_of([_work(params, asdict(params)), inputs, code])


def _work(params: Any, values: dict[str, Any]) -> dict[str, Any]:
    placement = getattr(params, "PLACEMENT", ())
    return {name: _work(getattr(params, name), value) if is_dataclass(getattr(params, name)) else _without(value, placement)
            for name, value in values.items() if name not in placement}


def _without(value: Any, placement: Sequence[str]) -> Any:
    """What a mapping says that overrides parameters, as a part of a run does."""
    return {key: _without(each, placement) for key, each in value.items() if key not in placement} if isinstance(value, dict) else value
