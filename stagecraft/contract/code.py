"""Digest of the code a stage runs: its component and the shared packages, source files and the tables they read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from stagecraft.contract.files import digest_of, sha256


def code_digest(stage: str) -> str:
    """Hex SHA-256 over the Python, C++ and YAML sources of `stagecraft` and `components/<stage>`, names included."""
    sources: dict[str, str] = {}
    for package in ("stagecraft", f"components.{stage}"):
        spec = importlib.util.find_spec(package)
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(path for kind in ("py", "yaml", "cpp", "hpp") for path in root.rglob(f"*.{kind}")):
            sources[f"{package}/{path.relative_to(root).as_posix()}"] = sha256(path)
    return digest_of(sources)
