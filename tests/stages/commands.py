"""A project of the training stages at their smallest, and the stages as the commands that DVC runs: waited for, killed and run again."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ruamel.yaml import YAML

from stagecraft.contract.events import read_events

ROOT = Path(__file__).parents[2]
CHANGES = {
    "curate": {"sample_bytes": 400_000, "tokenizer_bytes": 200_000, "vocab_size": 640},
    "pretrain": {"steps": 8, "warmup_steps": 2, "decay_steps": 2, "checkpoint_every": 2, "sequence_length": 64,
                 "heldout_every": 2, "heldout_look_rows": 4, "heldout_rows": 4, "merge": {"every": 2, "window": 2, "use": "better"}},
    "sft": {"steps": 8, "warmup_steps": 2, "decay_steps": 2, "checkpoint_every": 2, "pack_tokens": 512},
    # A model this small solves nothing: what it writes wrongly teaches it, in answers long enough to come to an end.
    "rl": {"steps": 4, "warmup_steps": 1, "checkpoint_every": 1, "prompts_per_step": 4, "generations_per_prompt": 4,
           "max_new_tokens": 192, "malformed_penalty": 1.0,
           "healing": {"steps": 4, "lr": 1.0e-3, "depths": 2, "rollouts": 2, "heldout": 12}},
}
LATER = [{"steps": 3, "loss_mean": "conversations", "pack_tokens": 640, "packs_per_step": 4, "modes": {"off": 0.1, "low": 0.1, "cut": 0.4}}]


def project(directory: Path, later_stages: list = LATER) -> Path:
    yaml = YAML()
    profile = yaml.load(ROOT / "params.yaml")
    for stage, changes in CHANGES.items():
        profile[stage].update(changes)
    profile["sft"]["later_stages"] += later_stages
    profile["curate"]["blend"].update(long_share=0.0)
    profile["curate"]["tasks"].update(sft_rows=600, rl_rows=60, heldout_rows=60)
    profile["pretrain"]["architecture"].update(vocab_size=640, hidden_size=64, n_routed_experts=8, mamba_num_heads=4)
    directory.mkdir()
    yaml.dump(profile, directory / "params.yaml")
    return directory


def environment(where: Path) -> dict[str, str]:
    """Of a stage in the project `where`, which tells its events to a file there."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": "",
            "STAGECRAFT_EVENTS": str(where / "events.jsonl")}


def start(stage: str, where: Path, *launcher: str) -> subprocess.Popen:
    """`launcher`: what comes between Python and the stage's module, such as torchrun and its options."""
    return subprocess.Popen([sys.executable, *launcher, "-m", f"components.{stage}"], cwd=where, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment(where))


def begun_at(where: Path, name: str) -> list[int]:
    """Steps that were done already, each time the training that is called `name` began: equal bits do not tell going on from anew."""
    events, _ = read_events(where / "events.jsonl")
    return [event["done"] for event in events if event["event"] == "bar_start" and event["description"] == name]


def run(stage: str, where: Path) -> dict:
    return end(start(stage, where), stage, where)


def end(process: subprocess.Popen, stage: str, where: Path) -> dict:
    """The metrics of a stage that was started, once it has ended well."""
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output[-3000:]
    return json.loads((where / "metrics" / f"{stage}.json").read_text())


def wait_for(process: subprocess.Popen, where: Path, pattern: str) -> list[Path]:
    """What is there, in order, once a path below the project's .work matches."""
    deadline = time.monotonic() + 900
    while not (found := sorted((where / ".work").glob(pattern))):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-3000:]
        time.sleep(0.005)
    return found


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the stage and all that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_when(stage: str, where: Path, pattern: str) -> None:
    """`kill` once a path below .work matches."""
    process = start(stage, where)
    wait_for(process, where, pattern)
    kill(process)


def curve(stage: str, where: Path) -> list[dict[str, str]]:
    """The training's curve, every digit of it, but for the columns that are times."""
    with (where / "plots" / stage / "train.csv").open() as stream:
        return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in csv.DictReader(stream)]
