"""Which model is to be served, by the evaluation's verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stagecraft.contract import manifest
from stagecraft.contract.errors import UserError
from stagecraft.contract.registry import read_promotion


def promoted(inputs: dict[str, Path]) -> tuple[Path, dict[str, Any]]:
    """The promoted checkpoint and the verdict.

    Raises:
        UserError: nothing was promoted, the promoted artifact is no input of this stage, or it has changed since it was evaluated.
    """
    where = str(inputs["evaluation"] / "promotion.json")
    verdict = read_promotion(inputs["evaluation"])
    name = verdict.get("promoted")
    if name is None:
        raise UserError(f"there is no model to serve: {verdict.get('reason', 'the verdict gives no reason')}", where=where,
                        mend="see report.html beside it; train further or change evaluate.gate in the parameters, then run dvc repro serve")
    if name not in inputs or name == "evaluation":
        raise UserError(f"promotes {name!r}, which this stage cannot serve", where=where,
                        mend=f"let evaluate.gate.candidates name {', '.join(key for key in inputs if key != 'evaluation')} only")
    digest = manifest.read(inputs[name])["digest"]
    if digest != verdict["digest"]:
        raise UserError("the promoted model is not the one that was evaluated: the digests differ", where=str(inputs[name]),
                        mend="run dvc repro evaluate")
    return inputs[name], verdict
