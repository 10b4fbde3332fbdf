"""One run of the stage on a tiny random checkpoint, shared by the tests of what it wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

from components.quantize import stage
from components.quantize.calibrate import calibration_windows
from components.quantize.distil import Distillation
from stagecraft.contract.runlog import RunLog
from tests.checkpoints import tiny_checkpoint
from tests.quantize.corpus import small_corpus

PARAMS = stage.Params(calibration=stage.Calibration(samples=16, heldout_samples=8, length=64, batch=8, conversations=0.5, seed=0),
                      nvfp4_scales="least_squares",
                      distil=Distillation(steps=0, lr=1e-4, batch=16, rollouts_share=0.4, clip=1.0, heldout=80, confidence=0.95, prompts=4,
                                          max_new_tokens=4, seed=0))


@dataclass
class Quantised:
    """The stage's inputs, outputs and metrics; `heldout` are the windows its divergence was measured on."""

    root: Path
    config: dict
    metrics: dict
    heldout: Tensor

    @property
    def source(self) -> Path:
        return self.root / "aligned"

    def path(self, name: str) -> Path:
        return self.root / name


def run(root: Path, params: stage.Params = PARAMS) -> dict:
    """Run the stage below `root`, which holds corpus/ and aligned/."""
    outputs = {name: root / name for name in stage.FORMATS}
    for directory in (*outputs.values(), root / "work"):
        directory.mkdir(exist_ok=True)
    inputs = {"corpus": root / "corpus", "aligned": root / "aligned"}
    return stage.main(params, inputs, outputs, RunLog("quantize", root / "plots", root / "work"))


@pytest.fixture(scope="session")
def quantised(tmp_path_factory) -> Quantised:
    root = tmp_path_factory.mktemp("quantise")
    small_corpus(root / "corpus")
    tiny_checkpoint(root / "aligned")
    (root / "aligned" / "rollouts.jsonl").write_text("{}\n")  # an artifact may hold more than the checkpoint
    metrics = run(root)
    config = json.loads((root / "aligned" / "config.json").read_text())
    _, heldout = calibration_windows(root / "corpus", PARAMS.calibration, config["vocab_size"])
    return Quantised(root, config, metrics, heldout)
