"""The order of the rows, which megatron-core shuffles once and keeps in files between attempts: sealed by digests, made again where one
differs.

A file cut short by a kill or a full disk would end every later attempt, an altered one have it train on other rows.
"""

from __future__ import annotations

import json
from pathlib import Path

from stagecraft.contract.files import sha256, write_json

SEAL = "sha256.json"


def unseal(directory: Path) -> None:
    """Remove every file that is not as it was when `seal` saw it; the dataset then makes it again, with the same bits."""
    try:
        digests = json.loads((directory / SEAL).read_text())
    except (OSError, ValueError):
        digests = {}
    for path in directory.glob("*"):
        if path.name != SEAL and (not isinstance(digests, dict) or digests.get(path.name) != sha256(path)):
            path.unlink()


def seal(directory: Path) -> None:
    """Record what the files are, all of which are whole now."""
    write_json(directory / SEAL, {path.name: sha256(path) for path in sorted(directory.glob("*")) if path.suffix in (".npy", ".txt")})
