"""The model registry: what the evaluation let through becomes a version of `stagecraft` with the alias `champion`."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from stagecraft.contract import manifest
from stagecraft.contract.errors import UserError
from stagecraft.contract.repository import locked_md5
from stagecraft.contract.stages import PATHS
from stagecraft.contract.tracking import experiment_id, served

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL = "stagecraft"
ALIAS = "champion"
_RECORD = "promotion.json"  # artifact of the run that a version is linked to


def read_promotion(evaluation: Path) -> dict[str, Any]:
    """The gate's verdict: {"promoted": artifact name or None, "reason", "digest", "protocol_digest"}.

    Raises:
        UserError: the evaluation has none, or it cannot be read.
    """
    path = evaluation / "promotion.json"
    try:
        verdict = json.loads(path.read_text())
        if not isinstance(verdict, dict) or "promoted" not in verdict:
            raise ValueError("it does not say what is promoted")
        said = [verdict.get(key) for key in ("promoted", "digest")]
        if said[0] is not None and not all(isinstance(each, str) for each in said):
            raise ValueError("what is promoted has no name or no digest")
        return verdict
    except (OSError, ValueError) as error:
        raise UserError(f"no verdict on promotion: {error}", where=str(path), mend="run dvc repro evaluate") from None


def promoted(artifacts: Mapping[str, Path], mend: str) -> tuple[Path, dict[str, Any]]:
    """Where the model lies that the evaluation promoted, and the verdict.

    Args:
        artifacts: by name, where `evaluation` is and each model that it may promote.
        mend: what to do where it promoted none.

    Raises:
        UserError: there is no verdict, nothing was promoted, what was is none of the artifacts, or it has changed since it was evaluated.
    """
    verdict, where = read_promotion(artifacts["evaluation"]), str(artifacts["evaluation"] / "promotion.json")
    name = verdict["promoted"]
    if name is None:
        raise UserError(f"there is no model to serve: {verdict.get('reason', 'the verdict gives no reason')}", where=where, mend=mend)
    models = {key: path for key, path in artifacts.items() if key != "evaluation"}
    if name not in models:
        raise UserError(f"promotes {name!r}, which cannot be served from here", where=where,
                        mend=f"let evaluate.gate.candidates name {', '.join(models)} only")
    if manifest.read(models[name])["digest"] != verdict["digest"]:
        raise UserError("the promoted model is not the one that was evaluated: the digests differ", where=str(models[name]),
                        mend="run dvc repro evaluate")
    return models[name], verdict


def promote(client: MlflowClient, verdict: dict[str, Any], run: str | None = None,
            note: Callable[[str], None] = lambda _: None) -> str | None:
    """Register the promoted model, or find it registered, and give it the alias. A null verdict leaves the champion alone.

    What the model answered (`record` of the verdict) is kept with the run of its version; a model that comes later is compared with
    it, and may not replace a champion that it falls behind.

    Args:
        client: where the registry is.
        verdict: what `read_promotion` returned.
        run: the MLflow run the version is linked to.
        note: is told of a champion that is replaced without a comparison.

    Returns:
        the version that now is the champion by this verdict; None when nothing was promoted.

    Raises:
        UserError: the champion stays, and why.
    """
    from mlflow.exceptions import MlflowException

    name = verdict["promoted"]
    if name is None:
        return None
    tags = {"artifact": name, "digest": verdict["digest"], "protocol_digest": verdict["protocol_digest"], "reason": verdict["reason"],
            "dvc_md5": locked_md5(PATHS[name]) or "", "dvc_path": PATHS[name].as_posix()}
    try:
        client.create_registered_model(MODEL, description="Hybrid Mamba-2 / attention / LatentMoE language models that passed evaluation.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    _challenge(client, verdict, note)
    same = [version for version in client.search_model_versions(f"name = '{MODEL}'")
            if all(version.tags.get(key) == tags[key] for key in ("digest", "protocol_digest", "artifact"))]
    version = same[0].version if same else _register(client, verdict, tags, run)
    client.set_registered_model_alias(MODEL, ALIAS, str(version))
    return str(version)


def registered(client: MlflowClient, alias: str) -> Path:
    """Where the model with an alias lies, if it is the one that was registered.

    Raises:
        UserError: there is no such alias, or what lies there is another model.
    """
    version = _aliased(client, alias)
    if version is None:
        raise UserError("no registered model has this alias", where=alias,
                        mend="give a directory or an address, or run the pipeline")
    path = _path(version)
    if manifest.verify(path)["digest"] != version.tags["digest"]:
        raise UserError(f"version {version.version} was registered from here, but another model lies here now", where=str(path),
                        mend=f"restore it: dvc checkout at the commit whose dvc.lock has {version.tags['dvc_md5'] or 'it'}")
    return path


def _challenge(client: MlflowClient, verdict: dict[str, Any], note: Callable[[str], None]) -> None:
    """Compare the promoted model with the champion, if that is another one and the verdict has a record to compare."""
    champion = _aliased(client, ALIAS)
    if champion is None or verdict.get("record") is None or champion.tags.get("digest") == verdict["digest"]:
        return
    # By name, as the runner finds stages: this package may import no component.
    rule, record, gone = importlib.import_module("components.evaluate.champion"), _record(client, champion), _gone(champion)
    if objections := rule.objections(verdict["record"], record, gone):
        raise UserError(f"{verdict['promoted']} does not replace the champion (version {champion.version}): {'; '.join(objections)}",
                        where="registry", mend="the champion stays; train a better model, or loosen evaluate.gate")
    if other := rule.of_another_protocol(verdict["record"], record):
        note(f"{verdict['promoted']} replaces the champion (version {champion.version}{', whose model is gone' if gone else ''}) "
             f"without a comparison: {other}")


def _path(version: ModelVersion) -> Path:
    """Where a version's model was registered from: a tag says so where the source cannot."""
    return Path(version.tags.get("path") or url2pathname(urlparse(version.source).path))


def _gone(version: ModelVersion) -> bool:
    """Whether another model lies where a version was registered, or none."""
    path = _path(version)
    return not (path / manifest.NAME).is_file() or manifest.read(path)["digest"] != version.tags["digest"]


def _register(client: MlflowClient, verdict: dict[str, Any], tags: dict[str, Any], run: str | None) -> str:
    if run is None:
        run = client.create_run(experiment_id(client), run_name="promotion").info.run_id
        client.set_terminated(run)
    if verdict.get("record") is not None:
        client.log_dict(run, verdict["record"], _RECORD)
    path = PATHS[verdict["promoted"]].absolute()
    source = path.as_uri()
    if served(client.tracking_uri):  # it refuses the path of a directory that it does not keep itself
        source, tags = f"runs:/{run}", {**tags, "path": str(path)}
    tags = {key: str(value)[:5000] for key, value in tags.items()}
    return client.create_model_version(MODEL, source=source, run_id=run, tags=tags).version


def _record(client: MlflowClient, version: ModelVersion) -> dict[str, Any] | None:
    """The record of a version; None for one that was registered without, or whose record is gone."""
    if not version.run_id or _RECORD not in [each.path for each in client.list_artifacts(version.run_id)]:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        return json.loads(Path(client.download_artifacts(version.run_id, _RECORD, scratch)).read_text())


def _aliased(client: MlflowClient, alias: str) -> ModelVersion | None:
    """The version with an alias; None if there is none. Any other failure of the registry is one: it must not pass for an empty one."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(MODEL, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model, no such alias
            raise
        return None
