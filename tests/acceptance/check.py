"""Judges a finished run by the figures it left; exit code 1 if one is missed. `python tests/acceptance/check.py`, in the project."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from math import hypot
from pathlib import Path

from mlflow import MlflowClient

from stagecraft.contract import manifest
from stagecraft.contract.errors import UserError, exit_on_user_error
from stagecraft.contract.stages import PATHS, STAGES
from stagecraft.contract.tracking import DEFAULT_URI, reached

MODELS = ("base", "sft", "aligned", "fp8", "nvfp4")

Verdict = tuple[str, bool, str]


def left_by(stage: str) -> dict:
    """The figures of a stage."""
    path = STAGES[stage].metrics_path
    if not path.exists():
        raise UserError("no run has come to its end here", where=str(path), mend="make run")
    return json.loads(path.read_text())


def learning(figures: dict[str, dict]) -> Iterator[Verdict]:
    """What the default run has to teach the model."""
    matched = {name: figures[name]["exact_match"] for name in MODELS}
    gain = matched["aligned"] - matched["sft"]
    error = hypot(figures["aligned"]["exact_match_stderr"], figures["sft"]["exact_match_stderr"])
    yield "base: at most 2.4 bits per byte", figures["base"]["bits_per_byte"] <= 2.4, f"{figures['base']['bits_per_byte']:.3f}"
    yield "base: below 5% exact match", matched["base"] < 0.05, f"{matched['base']:.1%}"
    yield "sft: at least 35%", matched["sft"] >= 0.35, f"{matched['sft']:.1%}"
    yield "rl: at least 20 points more", gain >= 0.20, f"{gain:+.1%}"
    yield "rl: outside the standard error", gain > error, f"{gain:+.1%} +- {error:.1%}"
    worse = {family: (found["exact_match"] - figures["aligned"]["families"][family]["exact_match"],
                      hypot(found["stderr"], figures["aligned"]["families"][family]["stderr"]))
             for family, found in figures["sft"]["families"].items()}
    family, (loss, error) = max(worse.items(), key=lambda item: item[1][0] - item[1][1])
    yield "rl: no family surely more than 3 points worse", loss - error <= 0.03, f"{family} {-loss:+.1%} +- {error:.1%}"
    yield "aligned: at least 50%", matched["aligned"] >= 0.50, f"{matched['aligned']:.1%}"
    loss = matched["nvfp4"] - matched["aligned"]
    yield "nvfp4: within 5 points of aligned", abs(loss) <= 0.05, f"{loss:+.1%}"
    for name in MODELS:
        families = figures[name]["families"]
        whole = len(families) >= 4 and all({"exact_match", "stderr", "n"} <= set(family) for family in families.values())
        yield f"{name}: every family with its error", whole, ", ".join(families)


def records(client: MlflowClient) -> Iterator[Verdict]:
    """Artifacts, metrics and the registry."""
    for name, path in PATHS.items():
        yield f"artifact {name} is whole", bool(manifest.verify(path)), str(path)
    for stage in STAGES.values():
        yield f"{stage.metrics_path} has seconds", "seconds" in left_by(stage.name), ""
    wanted = {"pretrain": ("tokens_per_second", "loss_first", "loss_last"),
              "serve": ("mtp_mean_accepted_length", "tokens_per_second", "time_to_first_token_ms_p50")}
    for stage, keys in wanted.items():
        found = left_by(stage)
        yield f"{stage}: {', '.join(keys)}", all(key in found for key in keys), " ".join(str(found.get(key)) for key in keys)
    champion = client.get_model_version_by_alias("stagecraft", "champion")
    yield "a champion is registered", bool(champion.tags["digest"]), f"version {champion.version}, {champion.tags['artifact']}"
    promoted = manifest.read(PATHS[champion.tags["artifact"]])
    yield "it is the model that lies here", promoted["digest"] == champion.tags["digest"], champion.tags["digest"][:12]


def main() -> int:
    figures = {name: left_by(name) for name in STAGES}
    with reached(os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI, "name the record of the run there") as client:
        verdicts = [*learning(figures["evaluate"]), *records(client)]
    for what, held, shown in verdicts:
        print(f"{'ok    ' if held else 'MISSED'}  {what:<48} {shown}")
    seconds = {name: found["seconds"] for name, found in figures.items()}
    print("seconds  " + "  ".join(f"{name} {value:.0f}" for name, value in seconds.items()) + f"  in all {sum(seconds.values()):.0f}")
    return 0 if all(held for _, held, _ in verdicts) else 1


if __name__ == "__main__":
    if not Path("dvc.yaml").exists():
        sys.exit("run this in the project's directory")
    exit_on_user_error(main)
