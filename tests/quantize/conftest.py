"""One run of the stage on a tiny random checkpoint, shared by the tests of what it wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

from components.quantize import modelopt_cpu, stage
from components.quantize.calibrate import calibration_windows
from components.quantize.export import export
from components.quantize.exported import read_tensors
from components.quantize.formats import chosen
from components.quantize.operators import read_header
from components.quantize.params import Calibration, Distillation, Params, Search
from components.quantize.search import Problem, pose
from components.quantize.source import load_model, source_config
from stagecraft.contract.runlog import RunLog
from tests.checkpoints import tiny_checkpoint
from tests.quantize.corpus import small_corpus

SEARCH = Search(enabled=True, effective_bits=4.75, formats=["nvfp4", "fp8", "bf16"], excluded="ignore", cost="bits", gpu="b200", tokens=64,
                frontier=0)
PARAMS = Params(calibration=Calibration(samples=16, heldout_samples=8, length=64, batch=8, conversations=0.5, seed=0),
                nvfp4_scales="least_squares", search=SEARCH,
                distil=Distillation(steps=0, lr=1e-4, batch=16, micro_batch=16, rollouts_share=0.4, clip=1.0, heldout=80, confidence=0.95,
                                    prompts=4, max_new_tokens=4, seed=0))


@dataclass
class Quantised:
    """The stage's inputs, outputs and metrics; `heldout` are the windows its divergence was measured on."""

    root: Path
    config: dict
    metrics: dict
    heldout: Tensor

    @property
    def search(self) -> tuple[Problem, dict[str, str]]:
        """The problem that the search posed and the choice it made, from the scores it kept."""
        problem = pose(read_header(self.source), self.config, json.loads((self.root / "work" / "scores.json").read_text()), SEARCH)
        return problem, problem.programme.solve(SEARCH.effective_bits)

    @property
    def source(self) -> Path:
        return self.root / "aligned"

    def path(self, name: str) -> Path:
        return self.root / name


def run(root: Path, params: Params = PARAMS) -> dict:
    """Run the stage below `root`, which holds corpus/ and aligned/."""
    outputs = {name: root / name for name in stage.FORMATS}
    for directory in (*outputs.values(), root / "work"):
        directory.mkdir(exist_ok=True)
    inputs = {"corpus": root / "corpus", "aligned": root / "aligned"}
    return stage.main(params, inputs, outputs, RunLog("quantize", root / "plots", root / "work"))


def made(corpus: Path, source: Path, directory: Path, choice: Mapping[str, str]) -> Path:
    """`source` quantised by a choice of formats, calibrated on the windows that the stage would draw."""
    modelopt_cpu.load()
    model, config = load_model(source), source_config(source)
    calibration, _ = calibration_windows(corpus, PARAMS.calibration, config["vocab_size"])
    directory.mkdir(parents=True)
    with modelopt_cpu.quiet(directory.with_suffix(".log")):
        modelopt_cpu.quantize(model, chosen(choice), calibration.split(PARAMS.calibration.batch), lambda: None)
        export(model, source, config, read_tensors(source, mtp=True), directory)
    return directory


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
