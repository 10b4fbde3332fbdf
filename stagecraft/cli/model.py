"""The model a command is to serve, as one names it: a directory, an alias of the registry, a DVC revision; its bytes verified."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from stagecraft.contract import manifest
from stagecraft.contract.errors import UserError
from stagecraft.contract.registry import MODEL, promoted, registered
from stagecraft.contract.repository import dvc
from stagecraft.contract.stages import PATHS
from stagecraft.contract.tracking import DEFAULT_URI, reached, without_password

FETCHED = Path(".work/models")
_URI = re.compile(rf"models:/{MODEL}@(?P<alias>[\w.-]+)")
_ALIAS = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Found:
    """A model.

    Attributes:
        path: its directory.
        origin: where it was found, for people.
        digest: of its files, which were compared with its manifest; None: it has none, so nothing was compared.
    """

    path: Path
    origin: str
    digest: str | None


def find(model: str | None, revision: str | None = None) -> Found:
    """Find a model and verify it.

    Args:
        model: a directory, an alias (`champion`, or `models:/stagecraft@champion`), `REVISION:PATH`, or None: the promoted one.
        revision: of git, for a model whose name or path is given without one (None: `aligned`).

    Raises:
        UserError: there is none of that name, nothing was promoted, or its files are not those its manifest records.
    """
    if revision is not None:
        return _at_revision(revision, model or "aligned")
    if model is None:
        path, verdict = promoted(PATHS, "name a checkpoint to serve: stagecraft serve artifacts/aligned")
        return _verified(path, f"{verdict['promoted']}, promoted by {PATHS['evaluation'] / 'promotion.json'}")
    if match := _URI.fullmatch(model):
        return _registered(match["alias"])
    if model.startswith("models:/"):
        raise UserError("no such model in the registry", where=model, mend=f"name it as models:/{MODEL}@ALIAS")
    path = Path(model)
    if ":" in model and not path.exists():
        return _at_revision(*model.split(":", 1))
    if path.exists() or not _ALIAS.fullmatch(model):
        return _verified(path, str(path))
    return _registered(model)


def _verified(path: Path, origin: str) -> Found:
    recorded = (path / manifest.NAME).is_file()
    return Found(path, origin, manifest.verify(path)["digest"] if recorded else None)


def _registered(alias: str) -> Found:
    uri = os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_URI)
    if not uri:
        raise UserError("no such directory, and there is no registry (MLFLOW_TRACKING_URI is empty)", where=alias,
                        mend="give a checkpoint directory")
    database = uri.partition("?")[0].removeprefix("sqlite:///")
    if uri.startswith("sqlite:///") and not Path(database).exists():  # to ask would make it
        raise UserError(f"no such directory, and there is no registry: {database} does not exist", where=alias,
                        mend="give a checkpoint directory, or run the pipeline")
    with reached(uri, "give a checkpoint directory, or start it") as client:
        path = registered(client, alias)  # verifies it
    return Found(path, f"{MODEL}@{alias} of {without_password(uri)}", manifest.read(path)["digest"])


def _at_revision(revision: str, model: str) -> Found:
    """What DVC's cache or remote has of an output as it was at a revision, laid into `FETCHED` once."""
    path = PATHS.get(model, Path(model))
    where = f"{revision}:{path}"
    # A name that begins with a dash would be an option of git's, which has some that write files.
    shown = None if revision.startswith("-") else subprocess.run(["git", "show", f"{revision}:dvc.lock"], capture_output=True, text=True,
                                                                 check=False)
    if shown is None or shown.returncode:
        raise UserError("no dvc.lock at this revision", where=where, mend="give a revision of git at which a run was committed")
    outs = [out for stage in YAML(typ="safe").load(shown.stdout).get("stages", {}).values() for out in stage.get("outs", ())]
    known = {out["path"]: out["md5"] for out in outs if "md5" in out}
    if path.as_posix() not in known:
        raise UserError("no output of that name at this revision", where=where, mend=f"give one of {', '.join(sorted(known))}")
    directory = FETCHED / known[path.as_posix()].removesuffix(".dir")
    if not (directory / manifest.NAME).is_file():
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        unfinished = directory.with_name(f".{directory.name}.{os.getpid()}")
        if dvc("get", "--quiet", ".", path.as_posix(), "--rev", revision, "--out", str(unfinished)):
            raise UserError("DVC has it neither in its cache nor in its remote", where=where,
                            mend="run dvc fetch --all-commits, or dvc repro")
        unfinished.replace(directory)
    return _verified(directory, where)
