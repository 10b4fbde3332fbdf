"""Quantize: the aligned model as an FP8 and as an NVFP4 checkpoint, calibrated on what it was tuned with."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.quantize import modelopt_cpu
from components.quantize.calibrate import calibration_windows
from components.quantize.decision import Point, decision_figure, frontier_figure, rows, write_csv
from components.quantize.distil import distil, plot
from components.quantize.divergence import divergence_from, log_probabilities
from components.quantize.export import effective_bits, export
from components.quantize.exported import Exported, read_tensors
from components.quantize.formats import Config, check_blocks, chosen, recipe
from components.quantize.frontier import Frontier, budgets
from components.quantize.mixture import Mixture, mixture
from components.quantize.modelopt_search import sensitivities
from components.quantize.operators import read_header
from components.quantize.params import Params
from components.quantize.search import Problem, pose, summary
from components.quantize.source import load_model, source_config, weight_bytes
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import link_or_copy, whole_directory, write_json
from stagecraft.contract.runlog import RunLog
from stagecraft.data.tokenizer import refuse_another

FORMATS = ("fp8", "nvfp4")


@dataclass(frozen=True)
class Setting:
    """What every step reads: the source, its configuration and MTP tensors, windows int64 [N, T], what
    distillation learns from, the source's predictions."""

    params: Params
    source: Path
    config: dict[str, Any]
    mtp: dict[str, Tensor]
    calibration: Tensor
    heldout: Tensor
    lessons: Mixture | None
    reference: Tensor
    log: RunLog
    seconds: dict[str, float]

    def batches(self, model: Any) -> list[Tensor]:
        """The calibration windows on the model's device."""
        return list(self.calibration.to(model.device).split(self.params.calibration.batch))

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add up the seconds of a step for the run's record."""
        started = time.perf_counter()
        yield
        self.seconds[step] = round(self.seconds.get(step, 0.0) + time.perf_counter() - started, 2)


def main(params: Params, inputs: dict[str, Path], outputs: dict[str, Path], log: RunLog) -> dict[str, float]:
    """Quantise.

    Args:
        inputs: `corpus` and the canonical checkpoint `aligned`.
        outputs: `fp8` and `nvfp4`, canonical checkpoints with packed weights, scales and hf_quant_config.json.

    Returns:
        source_bytes, and per format: bytes on disk, bits per weight of the quantised operators and of the whole checkpoint,
        KL divergence of the exported checkpoint from the source on held-out windows in nats per token; of the search its
        effective bits on disk, its sensitivity in nats per token, and how many operators have each format; what distillation
        changed, if there was any.

    Raises:
        UserError: a checkpoint of another architecture or unreadable, too little data to calibrate or distil on, a budget that no
            choice meets or that asks for no quantising, experts that do not make whole blocks.
    """
    setting = prepare(params, inputs, log)
    metrics: dict[str, float] = {"source_bytes": weight_bytes(setting.source)}
    configs = {name: recipe(name, params.nvfp4_scales) for name in FORMATS}
    if params.search.enabled:
        problem, choice = search(setting)
        configs["nvfp4"] = chosen(choice, params.nvfp4_scales)
    for name in FORMATS:
        metrics |= quantise(setting, name, configs[name], setting.lessons if name == "nvfp4" else None)
        metrics |= measure(setting, name)
    if params.search.enabled:
        metrics |= {"nvfp4_effective_bits": bits_on_disk(setting, problem, choice, log.work / "nvfp4"), **summary(problem, choice)}
        if params.search.frontier:
            points = measure_frontier(setting, problem)
            log.attach(write_csv(log.plots / "frontier.csv", [vars(point) for point in points]))
            log.figure("frontier", frontier_figure(points))
    for name in FORMATS:
        # Not moved: what a kill leaves half handed over is whole in the work directory.
        shutil.copytree(log.work / name, outputs[name], copy_function=link_or_copy, dirs_exist_ok=True)
    log.record(precision={"requested": list(FORMATS), "weights": "packed", "activations": "ModelOpt kernels"
                          if torch.cuda.is_available() else "emulated on this machine's CPU"}, seconds=setting.seconds)
    log.note("seconds: " + ", ".join(f"{step} {value:.1f}" for step, value in setting.seconds.items()))
    return metrics


def prepare(params: Params, inputs: dict[str, Path], log: RunLog) -> Setting:
    """Read and check the source, draw the windows, take down its predictions."""
    config = source_config(inputs["aligned"])
    if not params.search.enabled:
        check_blocks(inputs["aligned"], config)
    refuse_another(inputs["corpus"], inputs["aligned"])
    modelopt_cpu.load()
    calibration, heldout = calibration_windows(inputs["corpus"], params.calibration, config["vocab_size"])
    lessons = None
    if params.distil.steps:
        lessons = mixture(inputs["corpus"], inputs["aligned"], params.distil, params.calibration, log.note)
    reference = log_probabilities(load_model(inputs["aligned"]), heldout, params.calibration.batch)
    return Setting(params, inputs["aligned"], config, read_tensors(inputs["aligned"], mtp=True), calibration, heldout, lessons, reference,
                   log, {})


def search(setting: Setting) -> tuple[Problem, dict[str, str]]:
    """Score every operator in every format, choose, and show the decision. Scores outlive a kill, in `work`."""
    params, log, path = setting.params, setting.log, setting.log.work / "scores.json"
    if not path.exists():
        model = load_model(setting.source)
        batches = setting.batches(model)
        passes = len({"nvfp4", "fp8"} & set(params.search.formats)) + 1
        with setting.timed("search"), modelopt_cpu.quiet(log.work / "search.log"), \
                log.bar("scoring operators", total=passes * len(batches), unit="batch") as bar:
            write_json(path, sensitivities(model, params.search.formats, params.nvfp4_scales, batches, bar.advance))
    problem = pose(read_header(setting.source), setting.config, json.loads(path.read_text()), params.search)
    choice = problem.programme.solve(params.search.effective_bits)
    if set(choice.values()) <= {"bf16"}:
        raise UserError(f"a budget of {params.search.effective_bits:g} is best met by quantising nothing, which vLLM refuses",
                        where="quantize.search.effective_bits", mend="lower it")
    log.attach(write_csv(log.plots / "decision.csv", rows(problem, choice)))
    log.figure("decision", decision_figure(problem, choice))
    found = summary(problem, choice)
    log.note(f"search: {problem.effective_bits(choice):.3f} effective bits, sensitivity {found['search_sensitivity']:.4f} nats/token, "
             + ", ".join(f"{found[f'search_operators_{fmt}']} operators {fmt}" for fmt in problem.programme.formats))
    return problem, choice


def quantise(setting: Setting, name: str, config: Config, lessons: Mixture | None = None) -> dict[str, float]:
    """Write the checkpoint `work/name`, unless a run that was killed has left it there, whole; returns what distillation changed."""
    params, log, done, figures_path = setting.params, setting.log, setting.log.work / name, setting.log.work / f"{name}.json"
    if done.exists():
        log.note(f"{name}: exported before")
        if not lessons:
            return {}
        figures = json.loads(figures_path.read_text())
        plot(log, figures)
        return figures
    model, figures = load_model(setting.source), {}
    batches = setting.batches(model)
    with setting.timed(name), log.bar(f"calibrating {name}", total=len(batches), unit="batch") as bar, \
            modelopt_cpu.quiet(log.work / f"{name}.log"):
        modelopt_cpu.quantize(model, config, batches, bar.advance)
    with setting.timed("distillation" if lessons else name), modelopt_cpu.quiet(log.work / f"{name}.log"):
        if lessons:
            calibrate = partial(modelopt_cpu.quantize, config=config, batches=batches)
            model, figures = distil(load_model(setting.source), model, calibrate, lessons, params.distil, params.calibration.batch, log)
            write_json(figures_path, figures)
            plot(log, figures)
        with whole_directory(done) as directory:
            export(model, setting.source, setting.config, setting.mtp, directory)
    return figures


def measure(setting: Setting, name: str) -> dict[str, float]:
    """Sizes and divergence of the exported checkpoint `work/name`."""
    directory = setting.log.work / name
    with setting.timed("measuring"):
        model = Exported(load_model(setting.source)).load(read_tensors(directory))
        divergence = divergence_from(setting.reference, model, setting.heldout, setting.params.calibration.batch)
    size, (bits, whole) = weight_bytes(directory), effective_bits(directory, setting.source)
    setting.log.note(f"{name}: {size / 1e6:.2f} MB, {bits:.2f} bits per quantised weight, {divergence:.4f} nats from the source")
    return {f"{name}_kl": divergence, f"{name}_bytes": size, f"{name}_bits": bits, f"{name}_bits_whole": whole}


def bits_on_disk(setting: Setting, problem: Problem, choice: Mapping[str, str], directory: Path) -> float:
    """Effective bits of the exported checkpoint, as the search counts them.

    Raises:
        RuntimeError: they are not what the search reckoned with.
    """
    searched, whole = effective_bits(directory, setting.source, {operator.name for operator in problem.operators})
    actual, expected = whole if setting.params.search.excluded == "count" else searched, problem.effective_bits(choice)
    if abs(actual - expected) > 0.01:
        raise RuntimeError(f"{directory}: {actual:.4f} effective bits on disk where the search counted {expected:.4f}")
    return actual


def measure_frontier(setting: Setting, problem: Problem) -> list[Point]:
    """Bits and divergence of our search and ModelOpt's at several budgets, of single formats and of the recipes."""
    count, log = setting.params.search.frontier, setting.log
    for fmt in FORMATS:
        quantise(setting, f"{fmt}-everywhere", chosen(problem.everywhere(fmt), setting.params.nvfp4_scales))
    exports = {fmt: read_tensors(log.work / f"{fmt}-everywhere") for fmt in FORMATS} | {"bf16": read_tensors(setting.source)}
    frontier = Frontier(problem, exports, load_model(setting.source), setting.reference, setting.heldout, setting.params.calibration.batch)
    with setting.timed("frontier"), modelopt_cpu.quiet(log.work / "frontier.log"), \
            log.bar("frontier", total=2 * count + 4, unit="checkpoint") as bar:
        return frontier.points(budgets(problem, count), bar.advance)
