"""A kill in the middle costs at most the shard in work, and does not show in the result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
SHARDS = 6


def start(where: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": ""}
    return subprocess.Popen([sys.executable, "-m", "components.curate"], cwd=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, start_new_session=True, env=environment)


def results(where: Path) -> list[Path]:
    return [path for path in (where / ".work" / "cache" / "curate").glob("*") if path.is_dir() and (path / "tallies.json").is_file()
            and path.name[0] != "."]


def digests(where: Path) -> dict[str, str]:
    files = json.loads((where / "artifacts" / "corpus" / "manifest.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items()}


def test_a_killed_run_goes_on_from_its_finished_shards_to_the_same_bytes(tmp_path):
    profile = YAML().load(ROOT / "params.yaml")
    profile["curate"].update(sample_bytes=3_000_000, shards=SHARDS, workers=1, tokenizer_bytes=300_000, vocab_size=640)
    profile["curate"]["blend"]["long_share"] = 0.0
    profile["curate"]["tasks"].update(sft_rows=600, rl_rows=60, heldout_rows=60)
    YAML().dump(profile, tmp_path / "params.yaml")
    process = start(tmp_path)
    while len(results(tmp_path)) < 2:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = len(results(tmp_path))
    assert 2 <= done < SHARDS and not (tmp_path / "artifacts" / "corpus").exists()
    told, _ = start(tmp_path).communicate()
    assert f"{SHARDS - done} of {SHARDS} shards worked through" in told, told
    first = digests(tmp_path)
    for directory in (".work", "artifacts"):
        shutil.rmtree(tmp_path / directory)
    told, _ = start(tmp_path).communicate()
    assert f"{SHARDS} of {SHARDS} shards worked through" in told and digests(tmp_path) == first
