"""Reinforcement learning measured: in turn against beside, gain over SFT with seeds, one family against all.

`python benchmarks/rl.py PROJECT staleness|seeds|families [--seeds 3] [--steps N]`, PROJECT a directory with `params.yaml` and the
artifacts `corpus` and `sft`. Runs are kept below PROJECT/.work/benchmark, and not done twice; nothing else in PROJECT changes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stagecraft.data.chat import encode_prompt
from stagecraft.data.tasks import read_rows
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.environments import verify
from stagecraft.inference.engine import Engine

ROOT = Path(__file__).parents[1]


def run(project: Path, name: str, steps: int, **changes: Any) -> tuple[dict[str, float], Path]:
    """One rl stage with parameters changed: (its metrics, the aligned checkpoint)."""
    where = project / ".work" / "benchmark" / name
    if not (where / "metrics" / "rl.json").exists():
        (where / "artifacts").mkdir(parents=True, exist_ok=True)
        for artifact in ("corpus", "sft"):
            if not (where / "artifacts" / artifact).exists():
                (where / "artifacts" / artifact).symlink_to((project / "artifacts" / artifact).resolve())
        yaml = YAML()
        profile = yaml.load(project / "params.yaml")
        profile["rl"].update(changes | ({"steps": steps} if steps else {}))
        yaml.dump(profile, where / "params.yaml")
        subprocess.run([sys.executable, "-m", "components.rl"], cwd=where, check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": ""})
    return json.loads((where / "metrics" / "rl.json").read_text()), where / "artifacts" / "aligned"


def exact_match(project: Path, model: Path) -> dict[str, float]:
    """Greedy exact match on the held-out prompts: of all of them, and by family."""
    corpus = project / "artifacts" / "corpus"
    tokenizer, rows = load_tokenizer(corpus / "tokenizer"), read_rows(corpus / "tasks" / "heldout.jsonl")
    with Engine(model, max_model_len=256, max_num_seqs=64) as engine:
        answers = engine.generate([encode_prompt(tokenizer, row) for row in rows], temperature=0, max_tokens=64,
                                  stop_token_ids=[tokenizer.eos_token_id])
    scores: dict[str, list[float]] = {}
    for row, (answer,) in zip(rows, answers):
        text = tokenizer.decode(answer.token_ids[:-1] if answer.finished else answer.token_ids)
        for key in ("all", row["family"]):
            scores.setdefault(key, []).append(verify(row, text, finished=answer.finished).score)
    return {key: statistics.fmean(values) for key, values in scores.items()}


def staleness(project: Path, seeds: int, steps: int) -> None:
    """The same algorithm in turn, beside, and with weights pushed in flight."""
    ways = {"in turn": {"staleness": 0, "in_flight": False}, "beside": {"staleness": 1, "in_flight": False},
            "in flight": {"staleness": 1, "in_flight": True}}
    print(f"{'':10} {'seed':>4} {'seconds':>8} {'samples/s':>9} {'last reward':>11} {'exact match':>11} {'wait':>6} {'update':>6}")
    for seed in range(seeds):
        for way, changes in ways.items():
            started = time.monotonic()
            metrics, model = run(project, f"{way.replace(' ', '-')}-{seed}", steps, seed=seed, **changes)
            seconds = metrics.get("seconds", time.monotonic() - started)
            print(f"{way:10} {seed:4} {seconds:8.1f} {metrics['completions'] / seconds:9.1f} {metrics['reward_last']:11.3f} "
                  f"{exact_match(project, model)['all']:11.3f} {metrics['share_wait']:6.1%} {metrics['share_update']:6.1%}", flush=True)


def seeds(project: Path, count: int, steps: int) -> None:
    """Gain over SFT, mean and standard error over seeds, by family."""
    before = exact_match(project, project / "artifacts" / "sft")
    after = [exact_match(project, run(project, f"seed-{seed}", steps, seed=seed)[1]) for seed in range(count)]
    _table(before, {"aligned": after})


def families(project: Path, count: int, steps: int) -> None:
    """All families together against the first of them alone: what becomes of the others."""
    before = exact_match(project, project / "artifacts" / "sft")
    names = sorted(set(before) - {"all"})
    alone = {"mixture": dict.fromkeys(names[1:], 0.0)}
    _table(before, {
        "all together": [exact_match(project, run(project, f"seed-{seed}", steps, seed=seed)[1]) for seed in range(count)],
        f"{names[0]} alone": [exact_match(project, run(project, f"alone-{seed}", steps, seed=seed, **alone)[1]) for seed in range(count)]})


def _table(before: dict[str, float], after: dict[str, list[dict[str, float]]]) -> None:
    print(f"{'':12} {'sft':>7} " + " ".join(f"{name:>20}" for name in after))
    for key in before:
        cells = []
        for found in after.values():
            gains = [each[key] - before[key] for each in found]
            error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
            cells.append(f"{statistics.fmean(gains):+12.1%} ± {error:5.1%}")
        print(f"{key:12} {before[key]:7.1%} " + " ".join(cells))


def main() -> None:
    """Run the benchmark named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("what", choices=["staleness", "seeds", "families"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="of each run; 0: what params.yaml says")
    given = parser.parse_args()
    {"staleness": staleness, "seeds": seeds, "families": families}[given.what](given.project, given.seeds, given.steps)


if __name__ == "__main__":
    main()
