"""The model registry: what the evaluation let through becomes a version of `stagecraft` with the alias `champion`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagecraft.contract.errors import UserError
from stagecraft.contract.repository import locked_md5
from stagecraft.contract.stages import PATHS

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL = "stagecraft"
ALIAS = "champion"


def read_promotion(evaluation: Path) -> dict[str, Any]:
    """The gate's verdict: {"promoted": artifact name or None, "reason", "digest", "protocol_digest"}.

    Raises:
        UserError: the evaluation has none, or it cannot be read.
    """
    path = evaluation / "promotion.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"no verdict on promotion: {error}", where=str(path), mend="run dvc repro evaluate") from None


def promote(client: MlflowClient, verdict: dict[str, Any], run: str | None = None) -> str | None:
    """Register the promoted model, or find it registered, and give it the alias. A null verdict leaves the champion alone.

    Args:
        client: where the registry is.
        verdict: what `read_promotion` returned.
        run: the MLflow run the version is linked to.

    Returns:
        the version that now is the champion by this verdict; None when nothing was promoted.
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
    same = [version for version in client.search_model_versions(f"name = '{MODEL}'")
            if all(version.tags.get(key) == tags[key] for key in ("digest", "protocol_digest", "artifact"))]
    version = same[0].version if same else client.create_model_version(
        MODEL, source=PATHS[name].absolute().as_uri(), run_id=run, tags={key: str(value)[:5000] for key, value in tags.items()}).version
    client.set_registered_model_alias(MODEL, ALIAS, str(version))
    return str(version)
