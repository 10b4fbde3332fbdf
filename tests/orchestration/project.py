"""A project in a temporary directory: the real glue, pipelines and dvc.yaml, with seven quick stages in place of the real ones.

The stages are substitutes on purpose: they finish in no time, so that what is tested is who runs them, and when. What they write
depends on their parameters, their inputs and their code, as with the real ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from stagecraft.contract.stages import STAGES

REPOSITORY = Path(__file__).parents[2]
CHAMPION = ("champion.py", "protocol.py", "statistics.py")  # the rule that the registry asks is the real one

PARAMS = '''"""Parameters of a quick substitute."""

from typing import ClassVar

from pydantic import Field

from stagecraft.contract.params import params


@params
class Params:
    PLACEMENT: ClassVar = ("hang_seconds",)

    amount: int = Field(gt=0)
    rate: float
    fail: str = ""
    hang_seconds: int = 600
'''

STAGE = '''"""A quick substitute for the {name} stage."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from components.{name}.params import Params
from stagecraft.contract.errors import UserError


def main(params, inputs, outputs, log):
    with open(os.environ.get("EXECUTED", "executed.log"), "a") as stream:
        stream.write("{name}\\n")
    if params.fail == "user":
        raise UserError("nothing to read", where="corpus.txt", mend="write something into it")
    if params.fail == "crash":
        raise RuntimeError("a defect of the stage")
    if params.fail == "hang":
        time.sleep(600)
    total = params.amount + sum(len(path.name) for directory in inputs.values() for path in directory.iterdir())
    first = 0
    if (log.work / "checkpoint").exists():
        first = int((log.work / "checkpoint").read_text())
        log.note(f"resuming at {{first}}")
        log.rewind(first)
    with log.bar("counting", 10, done=first) as bar:
        for step in range(first + 1, 11):
            log.step(step, loss=1 / step, reward=step / 10)
            bar.advance(1, loss=1 / step)
            (log.work / "checkpoint").write_text(str(step))
            if params.fail == "kill" and step == 5 and first == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    for key, directory in outputs.items():
        (directory / "weights.bin").write_bytes(f"{{key}} {{total}} {{params.rate}}".encode() * 100)
    if "evaluation" in outputs:
        nvfp4 = json.loads((inputs["nvfp4"] / "manifest.json").read_text())
        rules = {{"family_max_loss": 0.1, "family_confidence": 0.95, "other_protocol": "refuse"}}
        scores = {{"sort": [float(params.fail != "worse" or at < 30) for at in range(50)]}}
        verdict = {{"promoted": "nvfp4", "reason": "within 5 points", "digest": nvfp4["digest"], "protocol_digest": "p" * 64,
                   "record": {{"protocol": {{"seed": 0}}, "rules": rules, "scores": scores}}}}
        (outputs["evaluation"] / "promotion.json").write_text(json.dumps(verdict))
    return {{"{key}": total, "curve_points": len(log.curve()), "families": {{"sort": {{"exact_match": 0.5}}}}}}
'''


@dataclass(frozen=True)
class Project:
    """The project's directory, with the commands a user would give in it."""

    root: Path

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m ...` in the project; MLflow is off unless MLFLOW_TRACKING_URI says otherwise."""
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "STAGECRAFT_", "KFP_"))}
        full = {**plain, "MLFLOW_TRACKING_URI": "", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **environment}
        return subprocess.run([sys.executable, "-m", *command], cwd=self.root, env=full, capture_output=True, text=True, timeout=600)

    def kfp(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("stagecraft.cli.kfp", "run", "pipelines/full.py", *arguments, **environment)

    def kfp_until_it_hangs(self, *arguments: str, seconds: float = 120, **environment: str) -> subprocess.Popen[str]:
        """`kfp run`, begun and followed until pretrain, which the profile is changed to hang in, is under way."""
        self.edit("params.yaml", "fail: ''\nsft", "fail: hang\nsft")
        process = subprocess.Popen([sys.executable, "-m", "stagecraft.cli.kfp", "run", *arguments, "pipelines/full.py"], cwd=self.root,
                                   env={**os.environ, "MLFLOW_TRACKING_URI": "", **environment},
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        log, deadline = self.root / "executed.log", time.monotonic() + seconds
        while not (log.exists() and "pretrain" in log.read_text()):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.2)
        return process

    def dvc(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("dvc", *arguments, **environment)

    def executed(self) -> list[str]:
        """The stages that ran since the last call."""
        log = self.root / "executed.log"
        names = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return names

    def edit(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert old in text
        (self.root / path).write_text(text.replace(old, new, 1))

    def metrics(self, stage: str) -> dict[str, float]:
        return json.loads((self.root / "metrics" / f"{stage}.json").read_text())


def make_project(root: Path) -> Project:
    """Lay the project out and put it under git and DVC."""
    for name in ("stagecraft", "pipelines", "components", ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
        source, target = REPOSITORY / name, root / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    for name, stage in STAGES.items():
        directory = root / "components" / name
        for path in directory.iterdir():
            if path.name not in ("__init__.py", "__main__.py", "component.py", *CHAMPION):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (directory / "params.py").write_text(PARAMS)
        (directory / "stage.py").write_text(STAGE.format(name=name, key=stage.key_metric))
    profile = "".join(f"{name}:\n  amount: {n}  # things to count\n  rate: 3e-4\n  fail: ''\n" for n, name in enumerate(STAGES, 1))
    cluster = (REPOSITORY / "params.yaml").read_text().partition("\ncluster:")
    (root / "params.yaml").write_text(profile + "".join(cluster[1:]))
    project = Project(root)
    done = project.run("stagecraft.contract.dvcfile")
    assert done.returncode == 0, done.stderr
    (root / ".gitignore").write_text((root / ".gitignore").read_text() + "/executed.log\n")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "start"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    return project
