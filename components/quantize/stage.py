"""Quantize: the aligned model as an FP8 and as an NVFP4 checkpoint, calibrated on what it was tuned with."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from components.quantize import modelopt_cpu
from components.quantize.calibrate import calibration_windows
from components.quantize.distil import Distillation, distil
from components.quantize.divergence import kl_divergence, log_probabilities
from components.quantize.export import effective_bits, export
from components.quantize.formats import recipe
from components.quantize.mixture import mixture
from components.quantize.source import load_model, mtp_tensors, read_config, weight_bytes
from stagecraft.contract.params import params
from stagecraft.contract.runlog import RunLog

FORMATS = ("fp8", "nvfp4")


@params
class Calibration:
    """What the activations' scales are measured on, and what the divergence is."""

    samples: Annotated[int, Field(gt=0)]
    heldout_samples: Annotated[int, Field(gt=0)]
    length: Annotated[int, Field(gt=1)]
    batch: Annotated[int, Field(gt=0)]
    conversations: Annotated[float, Field(ge=0, le=1)]
    seed: Annotated[int, Field(ge=0)]


@params
class Params:
    """Parameters of the quantize stage; params.yaml says what each means."""

    calibration: Calibration
    nvfp4_scales: Literal["least_squares", "max"]
    distil: Distillation


def main(params: Params, inputs: dict[str, Path], outputs: dict[str, Path], log: RunLog) -> dict[str, float]:
    """Quantise.

    Args:
        inputs: `corpus` and the canonical checkpoint `aligned`.
        outputs: `fp8` and `nvfp4`, canonical checkpoints with packed weights, scales and hf_quant_config.json.

    Returns:
        source_bytes, and per format: bytes on disk, bits per weight of the quantised operators and of the whole checkpoint,
        KL divergence from the source on held-out windows in nats per token; what distillation changed, if there was any.

    Raises:
        UserError: a checkpoint of another architecture or unreadable, too little data to calibrate or distil on.
    """
    config = read_config(inputs["aligned"])
    modelopt_cpu.load()
    calibration, heldout = calibration_windows(inputs["corpus"], params.calibration, config["vocab_size"])
    lessons = mixture(inputs["corpus"], inputs["aligned"], params.distil, params.calibration) if params.distil.steps else None
    source = load_model(inputs["aligned"])
    reference = log_probabilities(source, heldout, params.calibration.batch)
    mtp = mtp_tensors(inputs["aligned"])

    metrics: dict[str, float] = {"source_bytes": weight_bytes(inputs["aligned"])}
    for name in FORMATS:
        model = load_model(inputs["aligned"])
        rows = calibration.to(model.device).split(params.calibration.batch)
        with log.bar(f"calibrating {name}", total=len(rows), unit="batch") as bar, modelopt_cpu.quiet(log.work / f"{name}.log"):
            modelopt_cpu.quantize(model, recipe(name, params.nvfp4_scales), rows, bar.advance)
        with modelopt_cpu.quiet(log.work / f"{name}.log"):
            if name == "nvfp4" and lessons:
                calibrate = partial(modelopt_cpu.quantize, config=recipe(name, params.nvfp4_scales), batches=rows)
                model, figures = distil(source, model, calibrate, lessons, params.distil, params.calibration.batch, log)
                metrics.update(figures)
            metrics[f"{name}_kl"] = kl_divergence(reference, log_probabilities(model, heldout, params.calibration.batch))
            export(model, inputs["aligned"], config, mtp, outputs[name])
        metrics[f"{name}_bytes"] = weight_bytes(outputs[name])
        metrics[f"{name}_bits"], metrics[f"{name}_bits_whole"] = effective_bits(outputs[name], inputs["aligned"])
        log.note(f"{name}: {metrics[f'{name}_bytes'] / 1e6:.2f} MB, {metrics[f'{name}_bits']:.2f} bits per quantised weight, "
                 f"{metrics[f'{name}_kl']:.4f} nats from the source")
    log.record(precision={"requested": list(FORMATS), "weights": "packed", "activations": "emulated on this machine's CPU"
                          if model.device.type == "cpu" else "ModelOpt kernels"})
    return metrics
