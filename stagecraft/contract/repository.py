"""DVC, as the rest of the house sees it: run a stage through it, read its lock, carry lock entries between clones."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stagecraft.contract.errors import UserError
from stagecraft.contract.files import write_atomic
from stagecraft.contract.params import VARIABLE

LOCK = Path("dvc.lock")
STAGE_VARIABLE = "DVC_STAGE"  # set by DVC for the commands it runs (dvc/env.py)
_YAML = YAML(typ="safe")


def read_lock() -> dict[str, Any]:
    """Stage name -> its entry in dvc.lock (cmd, deps, params, outs with their digests)."""
    return _YAML.load(LOCK.read_text()).get("stages", {}) if LOCK.exists() else {}


def locked_md5(path: Path) -> str | None:
    """The digest DVC recorded for an output, None when no stage has recorded it."""
    for entry in read_lock().values():
        for out in entry.get("outs", ()):
            if out["path"] == path.as_posix():
                return out.get("md5")
    return None


def merge_lock(entries: Mapping[str, Any]) -> None:
    """Add other clones' lock entries, so that DVC knows what upstream pods computed."""
    stages = {**read_lock(), **entries}
    stream = StringIO()
    writer = YAML()
    writer.dump({"schema": "2.0", "stages": stages}, stream)
    write_atomic(LOCK, stream.getvalue())


def has_remote() -> bool:
    """Whether DVC has a default remote; without one `dvc repro --pull` fails instead of doing without."""
    return _config(Path()).has_option("core", "remote")


def check_checkout(root: Path) -> None:
    """Whether DVC finds the git repository that it works in, unless its configuration does without one.

    Raises:
        UserError: it does not, as in a source archive.
    """
    under_git = any((directory / ".git").exists() for directory in (root, *root.parents))
    if not under_git and not _config(root).getboolean("core", "no_scm", fallback=False):
        raise UserError("no git checkout, which DVC needs", where=str(root), mend="clone the repository, or `git init` here")


def _config(root: Path) -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)
    config.read([root / ".dvc" / "config", root / ".dvc" / "config.local"])
    return config


def dvc(*arguments: str) -> int:
    """Run a dvc command with this interpreter first on PATH (dvc.yaml says `python`); returns its exit status.

    The stages read params.yaml, as DVC does, whatever profile this process was given.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], env={**environment, "PATH": path}, check=False).returncode
