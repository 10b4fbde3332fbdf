"""What makes two attempts at a stage the same work: whoever comes second goes on where the first was ended."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any

from stagecraft.contract.files import digest_of


def work_key(params: Any, inputs: dict[str, str], code: str = "") -> str:
    """Digest of a stage's parameters, but for where it is done and how safely (`PLACEMENT` of the parameters and of their groups), of its
    inputs' digests and of its code's."""
    return digest_of([_work(params, asdict(params)), inputs, code])


def _work(params: Any, values: dict[str, Any]) -> dict[str, Any]:
    """What is left of values: of the parameters' own, or of what a part of a run says differently, under its name."""
    groups = {name: group for name, group in vars(params).items() if is_dataclass(group)}
    return {name: _work(groups.get(name, params), value) if isinstance(value, dict) else value
            for name, value in values.items() if name not in getattr(params, "PLACEMENT", ())}
