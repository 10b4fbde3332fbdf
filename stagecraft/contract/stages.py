"""The seven stages and what flows between them: the one table that dvc.yaml, the pipelines and the runner agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a stage's `foresee(profile, pod)` looks at: parameters of the stages that run, by name. `pod`: what it asks of a cluster, if they run
# there; None: they run on this machine.
Profile = Mapping[str, Any]

ARTIFACTS = Path("artifacts")

# Artifact name -> path below the project root.
PATHS: dict[str, Path] = {
    "corpus": ARTIFACTS / "corpus",
    "base": ARTIFACTS / "base",
    "sft": ARTIFACTS / "sft",
    "aligned": ARTIFACTS / "aligned",
    "fp8": ARTIFACTS / "quantized" / "fp8",
    "nvfp4": ARTIFACTS / "quantized" / "nvfp4",
    "evaluation": ARTIFACTS / "evaluation",
    "serving": ARTIFACTS / "serving",
}


@dataclass(frozen=True)
class Stage:
    """A stage's name, the artifacts it reads and writes, and the metric that sums it up."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    key_metric: str

    @property
    def metrics_path(self) -> Path:
        return Path("metrics") / f"{self.name}.json"

    @property
    def plots_path(self) -> Path:
        return Path("plots") / self.name


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("curate", (), ("corpus",), "tokens"),
        Stage("pretrain", ("corpus",), ("base",), "heldout_bits_per_byte"),
        Stage("sft", ("corpus", "base"), ("sft",), "loss_last"),
        Stage("rl", ("corpus", "sft"), ("aligned",), "reward_last"),
        Stage("quantize", ("corpus", "aligned"), ("fp8", "nvfp4"), "nvfp4_bytes"),
        Stage("evaluate", ("corpus", "base", "sft", "aligned", "fp8", "nvfp4"), ("evaluation",), "promoted_exact_match"),
        Stage("serve", ("aligned", "fp8", "nvfp4", "evaluation"), ("serving",), "tokens_per_second"),
    )
}
