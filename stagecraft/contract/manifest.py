"""manifest.json: what an artifact is made of. Written last; a directory without one is not an output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stagecraft.contract.errors import UserError
from stagecraft.contract.files import digest_of, sha256_each, write_json
from stagecraft.contract.verified import Verified, stamp_of

NAME = "manifest.json"
_KEYS = {"stage", "digest", "files"}


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Relative path -> size in bytes and SHA-256, for every file below `directory` but the manifest."""
    files = [p for p in sorted(directory.rglob("*")) if p.is_file() and p != directory / NAME]
    return {p.relative_to(directory).as_posix(): {"size": p.stat().st_size, "sha256": digest}
            for p, digest in zip(files, sha256_each(files), strict=True)}


def write(directory: Path, *, stage: str, params: dict[str, Any], inputs: dict[str, str], code: str,
          environment: dict[str, Any], metrics: dict[str, Any]) -> str:
    """Describe a finished output directory; returns the artifact's digest (of its files alone, not of when or where)."""
    files = describe_files(directory)
    digest = digest_of(files)
    write_json(directory / NAME, {
        "stage": stage, "digest": digest, "params": params, "inputs": inputs, "code": code,
        "environment": environment, "metrics": metrics, "files": files,
    })
    return digest


def read(directory: Path) -> dict[str, Any]:
    """Read an artifact's manifest.

    Raises:
        UserError: there is no such artifact, or its manifest is unreadable.
    """
    path = directory / NAME
    try:
        manifest = json.loads(path.read_text())
        if not isinstance(manifest, dict) or not manifest.keys() >= _KEYS:
            raise ValueError(f"it lacks {', '.join(sorted(_KEYS))}")
        if not _describes_files(manifest["files"]) or not isinstance(manifest["digest"], str):
            raise ValueError("its digest is no text, or its files are not names with size and sha256")
        return manifest
    except FileNotFoundError:
        raise UserError("not a finished artifact (no manifest.json)", where=str(directory),
                        mend=f"run the stage that makes it: dvc repro {_maker(directory)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"unreadable manifest: {error}", where=str(path), mend=_restore(directory)) from None


def verify(directory: Path, verified: Verified | None = None, advance: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Read the manifest and check every file it names, byte for byte.

    Args:
        verified: remembers the files found right; those it knows are not read again.
        advance: called for each file that is found right.

    Raises:
        UserError: names the first file that is missing, has another size or another SHA-256.
    """
    manifest = read(directory)
    unread = {}
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise UserError("missing file", where=str(path), mend=_restore(directory))
        if path.stat().st_size != expected["size"]:
            raise _corrupt(path, directory)
        if verified is not None and verified.knows(path, expected["sha256"]):
            advance()
        else:
            unread[path] = stamp_of(path), expected
    try:
        for (path, (stamp, expected)), digest in zip(unread.items(), sha256_each(list(unread)), strict=True):
            if digest != expected["sha256"]:
                raise _corrupt(path, directory)
            if verified is not None:
                verified.learn(path, stamp, digest)
                verified.keep()
            advance()
    finally:
        if verified is not None:
            verified.save()
    return manifest


def _corrupt(path: Path, directory: Path) -> UserError:
    return UserError("corrupt file: its bytes are not those the manifest records", where=str(path), mend=_restore(directory))


def _describes_files(files: Any) -> bool:
    return isinstance(files, dict) and all(isinstance(file, dict) and file.keys() >= {"size", "sha256"} for file in files.values())


def _maker(directory: Path) -> str:
    from stagecraft.contract.stages import PATHS, STAGES

    names = {name for name, path in PATHS.items() if directory.as_posix().endswith(path.as_posix())}
    return next((s.name for s in STAGES.values() if names & set(s.outputs)), "")


def _restore(directory: Path) -> str:
    return f"restore it with `dvc checkout --force {directory}` or make it anew: delete it and run dvc repro {_maker(directory)}".rstrip()
