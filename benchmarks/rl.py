"""Reinforcement learning measured, on a directory PROJECT with `params.yaml` and the artifacts `corpus` and `sft`.

python -m benchmarks.rl PROJECT staleness   in turn, beside and with weights pushed in flight
python -m benchmarks.rl PROJECT workers     one generation worker, two, a divided one, and two actors of Ray (needs ray)
python -m benchmarks.rl PROJECT ranks       a trainer of one rank and of two
python -m benchmarks.rl PROJECT seeds       gain over SFT with its standard error, by family
python -m benchmarks.rl PROJECT families    all families together against one alone
python -m benchmarks.rl PROJECT healing     accepted drafts before RL, after it and healed, by the trainer and by vLLM's own counters
python -m benchmarks.rl PROJECT rlhf        a reward model of our own: its accuracy, and the policy's win rate over SFT
python -m benchmarks.rl PROJECT trl --trl-python VENV/bin/python   speed beside TRL's GRPOTrainer (VENV: trl and what it needs)

`--seeds` and `--steps` make them smaller. Runs are kept below PROJECT/.work/benchmark, and not done twice; nothing else changes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from benchmarks import stages
from benchmarks.estimates import shown
from benchmarks.stages import ROOT, exact_match, greedy_answers
from components.rl.params import Params
from components.rl.rlhf.judge import Judge
from components.rl.rlhf.serving import served, settings
from stagecraft.contract.params import load
from stagecraft.data.chat import encode_prompt
from stagecraft.data.tasks import read_rows
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.inference.engine import Engine
from stagecraft.inference.server import Server


@dataclass
class Benchmark:
    """What was asked for on the command line."""

    project: Path
    seeds: int
    steps: int
    kl: float
    trl_python: str

    @property
    def corpus(self) -> Path:
        """The corpus's artifact."""
        return self.project / "artifacts" / "corpus"

    @property
    def tuned(self) -> Path:
        """The fine-tuned model."""
        return self.project / "artifacts" / "sft"

    def run(self, name: str, **changes: Any) -> tuple[dict[str, float], Path]:
        """One rl stage with parameters changed: (its metrics, where it ran)."""
        return stages.run("rl", self.project, name, {"corpus": self.corpus, "sft": self.tuned},
                          changes | ({"steps": self.steps} if self.steps else {}))

    def exact_match(self, model: Path) -> dict[str, float]:
        """Greedy exact match on the held-out prompts: of all of them, and by family."""
        return exact_match(model, self.corpus, read_rows(self.corpus / "tasks" / "heldout.jsonl"))

    def after(self, name: str, **changes: Any) -> list[dict[str, float]]:
        """Exact match after reinforcement learning, for every seed."""
        runs = [self.run(f"{name}-{seed}", seed=seed, **changes)[1] for seed in range(self.seeds)]
        return [self.exact_match(where / "artifacts" / "aligned") for where in runs]


def staleness(given: Benchmark) -> None:
    """The same algorithm in turn, beside, and with weights pushed in flight."""
    ways = {"in turn": {"staleness": 0, "in_flight": False}, "beside": {"staleness": 1, "in_flight": False},
            "in flight": {"staleness": 1, "in_flight": True}}
    print(f"{'':10} {'seed':>4} {'seconds':>8} {'samples/s':>9} {'last reward':>11} {'exact match':>11} {'wait':>6} {'update':>6}")
    for seed in range(given.seeds):
        for way, changes in ways.items():
            metrics, where = given.run(f"{way.replace(' ', '-')}-{seed}", seed=seed, **changes)
            print(f"{way:10} {seed:4} {metrics['seconds']:8.1f} {metrics['completions'] / metrics['seconds']:9.1f} "
                  f"{metrics['reward_last']:11.3f} {given.exact_match(where / 'artifacts' / 'aligned')['all']:11.3f} "
                  f"{metrics['share_wait']:6.1%} {metrics['share_update']:6.1%}", flush=True)


def workers(given: Benchmark) -> None:
    """A step's prompts drawn by one process, by two, by one whose engine two processes divide, and by two actors of Ray."""
    ways = {"one process": ("process", 1, 1), "two processes": ("process", 2, 1), "one, divided": ("process", 1, 2),
            "two Ray actors": ("ray", 2, 1)}
    _steps(given, {way: {"generators": dict(zip(("launcher", "count", "tensor"), each))} for way, each in ways.items()})


def ranks(given: Benchmark) -> None:
    """The trainer as one rank and as two, which divide a step's packs, the rows, the layers or the experts."""
    one = {"tensor": 1, "pipeline": 1, "context": 1, "expert": 1}
    divided = {f"two, {name}": {"processes": 2, "layout": one | {name: 2}} for name in ("context", "pipeline", "expert")}
    _steps(given, {"one rank": {}, "two, data": {"processes": 2}, **divided})


def _steps(given: Benchmark, ways: dict[str, dict[str, Any]]) -> None:
    """Medians over the steps after the first, in seconds, for runs with parameters changed."""
    parts = ("generate", "wait", "update", "handover")
    print(f"{'':14} {'seed':>4} {'step':>8} " + " ".join(f"{part:>8}" for part in parts)
          + f" {'first reward':>12} {'last':>6} {'exact match':>11} {'stage':>8}")
    for seed in range(given.seeds):
        for way, changes in ways.items():
            metrics, where = given.run(f"{re.sub('[^a-z]+', '-', way.lower())}-{seed}", seed=seed, **changes)
            curve = _curve(where)[1:]  # the first step waits for the engines
            step = statistics.median(sum(row[f"seconds_{part}"] for part in parts[1:]) for row in curve)
            print(f"{way:14} {seed:4} {step:8.3f} "
                  + " ".join(f"{statistics.median(row[f'seconds_{part}'] for row in curve):8.3f}" for part in parts)
                  + f" {metrics['reward_first']:12.3f} {metrics['reward_last']:6.3f} "
                  f"{given.exact_match(where / 'artifacts' / 'aligned')['all']:11.3f} {metrics['seconds']:8.1f}", flush=True)


def seeds(given: Benchmark) -> None:
    """Gain over SFT, mean and standard error over seeds, by family."""
    _table(given.exact_match(given.tuned), {"aligned": given.after("seed")})


def families(given: Benchmark) -> None:
    """All families together against the first of them alone: what becomes of the others."""
    before = given.exact_match(given.tuned)
    first, *others = sorted(set(before) - {"all"})
    _table(before, {"all together": given.after("seed"), f"{first} alone": given.after("alone", mixture=dict.fromkeys(others, 0.0))})


def healing(given: Benchmark) -> None:
    """Accepted drafts of greedy answers to held-out prompts: the trainer's figures, and what vLLM counts with 1 draft and with 2."""
    metrics, where = given.run("seed-0", seed=0)
    healed, unhealed = where / "artifacts" / "aligned", where / "artifacts" / "unhealed"
    shutil.copytree(healed, unhealed, dirs_exist_ok=True)
    block = {name: tensor for name, tensor in load_file(given.tuned / "model.safetensors").items() if name.startswith("mtp.")}
    save_file({**load_file(healed / "model.safetensors"), **block}, unhealed / "model.safetensors", metadata={"format": "pt"})
    with (where / "params.yaml").open() as stream:
        rl = YAML(typ="safe").load(stream)["rl"]
    tokenizer = load_tokenizer(given.corpus / "tokenizer")
    prompts = [encode_prompt(tokenizer, row) for row in read_rows(given.corpus / "tasks" / "heldout.jsonl")]
    prompts = [prompt for prompt in prompts if len(prompt) <= rl["max_prompt_tokens"]][:rl["healing"]["heldout"]]
    print(f"{'':20} {'foreseen at 1':>13} {'at 2':>6} {'length':>7} {'vLLM, 1 draft':>14} {'vLLM, 2 drafts':>15}")
    for name, when, model in (("before RL", "before", given.tuned), ("after RL", "rl", unhealed), ("healed", "healed", healed)):
        counted = []
        for drafts in (1, 2):
            with Engine(model, max_model_len=rl["max_prompt_tokens"] + rl["max_new_tokens"], max_num_seqs=32,
                        draft_tokens=drafts) as engine:
                engine.generate(prompts, temperature=0, max_tokens=rl["max_new_tokens"], stop_token_ids=[tokenizer.eos_token_id])
                steps, _, accepted = engine.draft_statistics()
                counted.append(1 + sum(accepted) / steps)
        print(f"{name:20} {metrics[f'foreseen_1_{when}']:13.1%} {metrics[f'foreseen_2_{when}']:6.1%} "
              f"{metrics[f'accepted_length_{when}']:7.3f} {counted[0]:14.3f} {counted[1]:15.3f}", flush=True)


def rlhf(given: Benchmark) -> None:
    """Rewards by a reward model trained here: its accuracy, what the verifiers say of the policy, and how often the judge prefers it."""
    with (given.project / "params.yaml").open() as stream:
        preferences = YAML(typ="safe").load(stream)["rl"]["preferences"] | {"enabled": True, "url": "", "model": ""}
    rows = read_rows(given.corpus / "tasks" / "heldout.jsonl")
    before = [text for text, _ in greedy_answers(given.tuned, given.corpus, rows)]
    print(f"{'seed':>4} {'judge right':>11} {'win rate':>9} {'exact match, sft':>16} {'after':>6} {'verified, first step':>20} {'last':>6}")
    for seed in range(given.seeds):
        metrics, where = given.run(f"rlhf-{seed}", seed=seed, kl=given.kl, preferences=preferences)
        aligned, params = where / "artifacts" / "aligned", load(Params, "rl", where / "params.yaml")
        after = [text for text, _ in greedy_answers(aligned, given.corpus, rows)]
        asked = [row["messages"][-1]["content"] for row in rows]
        with Server(aligned / "reward_model", settings(params), where / "server.log") as server:
            judge = Judge(served(params.preferences, server), taught=True)
            scores = judge.scores([*zip(asked, after, before), *zip(asked, before, after)])
        ahead = [(each[0] - each[1]) * (1 if at < len(rows) else -1) if each else 0 for at, each in enumerate(scores)]
        wins = sum(0.5 + 0.5 * ((each > 0) - (each < 0)) for each in ahead) / len(ahead)
        print(f"{seed:4} {metrics['reward_model_accuracy']:11.1%} {wins:9.1%} {given.exact_match(given.tuned)['all']:16.1%} "
              f"{given.exact_match(aligned)['all']:6.1%} {metrics['verified_first']:20.1%} {metrics['verified_last']:6.1%}", flush=True)


def trl(given: Benchmark) -> None:
    """Samples per second of ours and of TRL's GRPOTrainer: the same model, prompts, batch and lengths; the first step does not count."""
    found = {}
    for way, staleness_ in (("ours, in turn", 0), ("ours, beside", 1)):
        metrics, where = given.run(f"speed-{staleness_}", staleness=staleness_, in_flight=False)
        curve = _curve(where)[1:]
        parts = {part: sum(row[f"seconds_{part}"] for row in curve) for part in ("wait", "update", "handover")}
        seconds = sum(parts.values())
        found[way] = {"samples_per_second": metrics["completions"] / (len(curve) + 1) * len(curve) / seconds,
                      "generated_tokens_per_second": sum(row["tokens"] for row in curve) / sum(row["seconds_generate"] for row in curve),
                      "share_generate": parts["wait"] / seconds, "share_update": parts["update"] / seconds,
                      "share_handover": parts["handover"] / seconds}
        steps = len(curve) + 1
    done = subprocess.run([given.trl_python, "-m", "benchmarks.trl_grpo", str(given.tuned.resolve()), str(given.corpus.resolve()),
                           str((where / "params.yaml").resolve()), str(steps)],
                          check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    found["TRL"] = json.loads(done.stdout.splitlines()[-1])
    print(f"{'':14} {'samples/s':>9} {'rollout tokens/s':>16} {'waits for completions':>21} {'update':>7} {'hand-over':>9}")
    for way, each in found.items():
        print(f"{way:14} {each['samples_per_second']:9.1f} {each['generated_tokens_per_second']:16.0f} {each['share_generate']:21.1%} "
              f"{each['share_update']:7.1%} {each['share_handover']:9.1%}")


def _curve(where: Path) -> list[dict[str, float]]:
    with (where / "plots" / "rl" / "train.csv").open() as stream:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]


def _table(before: dict[str, float], after: dict[str, list[dict[str, float]]]) -> None:
    print(f"{'':12} {'sft':>7} " + " ".join(f"{name:>20}" for name in after))
    for key in before:
        gains = [shown([each[key] - before[key] for each in found], "+.1%") for found in after.values()]
        print(f"{key:12} {before[key]:7.1%} " + " ".join(f"{gain:>20}" for gain in gains))


BENCHMARKS: dict[str, Callable[[Benchmark], None]] = {
    "staleness": staleness, "workers": workers, "ranks": ranks, "seeds": seeds, "families": families, "healing": healing, "rlhf": rlhf,
    "trl": trl}


def main() -> None:
    """Run the benchmark named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("what", choices=BENCHMARKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="of each run; 0: what params.yaml says")
    parser.add_argument("--kl", type=float, default=1.0e-4, help="of rlhf: weight of the divergence from the fine-tuned model")
    parser.add_argument("--trl-python", default=sys.executable, help="of trl: a Python that can import it, and what this project needs")
    given = parser.parse_args()
    BENCHMARKS[given.what](Benchmark(given.project, given.seeds, given.steps, given.kl, given.trl_python))


if __name__ == "__main__":
    main()
