"""For benchmarks of whole stages: one run with parameters changed, kept and not done twice; how many prompts a model answers right."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stagecraft.data.chat import encode_prompt
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.environments import verify
from stagecraft.inference.engine import Engine

ROOT = Path(__file__).parents[1]


def run(stage: str, project: Path, name: str, inputs: Mapping[str, Path], changes: Mapping[str, Any]) -> tuple[dict[str, float], Path]:
    """Run a stage below PROJECT/.work/benchmark/NAME with the parameters of PROJECT/params.yaml changed, unless just that was done.

    Args:
        inputs: artifact -> where it is.
        changes: parameter of the stage -> value.

    Returns:
        its metrics, and the directory it ran in.
    """
    where = project / ".work" / "benchmark" / name
    metrics, params, yaml = where / "metrics" / f"{stage}.json", where / "params.yaml", YAML()
    profile = yaml.load(project / "params.yaml")
    profile[stage].update(changes)
    if not metrics.exists() or yaml.load(params)[stage] != profile[stage]:
        metrics.unlink(missing_ok=True)
        (where / "artifacts").mkdir(parents=True, exist_ok=True)
        for artifact, place in inputs.items():
            link = where / "artifacts" / artifact
            link.unlink(missing_ok=True)
            link.symlink_to(place.resolve())
        yaml.dump(profile, params)
        subprocess.run([sys.executable, "-m", f"components.{stage}"], cwd=where, check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": ""})
    return json.loads(metrics.read_text()), where


def greedy_answers(model: Path, corpus: Path, rows: Sequence[dict[str, Any]]) -> list[tuple[str, bool]]:
    """What a model says to task rows: the text, and whether it ended by itself."""
    tokenizer = load_tokenizer(corpus / "tokenizer")
    with Engine(model, max_model_len=256, max_num_seqs=64) as engine:
        answers = engine.generate([encode_prompt(tokenizer, row) for row in rows], temperature=0, max_tokens=64,
                                  stop_token_ids=[tokenizer.eos_token_id])
    return [(tokenizer.decode(answer.token_ids[:-1] if answer.finished else answer.token_ids), answer.finished) for (answer,) in answers]


def exact_match(model: Path, corpus: Path, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of rows answered right, greedily: of all of them, and by family."""
    scores: dict[str, list[float]] = {}
    for row, (text, finished) in zip(rows, greedy_answers(model, corpus, rows)):
        for key in ("all", row["family"]):
            scores.setdefault(key, []).append(verify(row, text, finished=finished).score)
    return {key: statistics.fmean(values) for key, values in scores.items()}
