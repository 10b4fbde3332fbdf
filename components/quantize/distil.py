"""Quantisation-aware distillation: the quantised student learns the source's predictions, and is kept only if that helped.

As in arXiv 2604.12374, section 4, the teacher is the source in its own precision, the loss KL(teacher || student) on the logits, and
what both read is fine-tuning conversations and RL rollouts. Here every position counts, and all weights of the layers learn but the
router's; embedding and head stay too, for the MTP block reads them and is not retrained. Gradients pass straight through the
rounding (ModelOpt's quantisers) with the scales of calibration; afterwards the new weights are calibrated like any others, and
that model is the one judged.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from components.quantize.answers import solved
from components.quantize.divergence import divergence_by_window
from components.quantize.mixture import Mixture
from stagecraft.contract.runlog import RunLog

if TYPE_CHECKING:
    from components.quantize.params import Distillation

ROUTER = ".mixer.gate."


@dataclass(frozen=True)
class Standing:
    """A student on the held-out windows and prompts: KL(teacher || student) by window in nats per token, answers 1 or 0 by prompt."""

    divergence: Tensor
    solved: Tensor


def distil(teacher: torch.nn.Module, student: torch.nn.Module, calibrate: Callable[[torch.nn.Module], None], data: Mixture,
           params: Distillation, batch: int, log: RunLog) -> tuple[torch.nn.Module, dict[str, float]]:
    """Distil `teacher` into `student`.

    Args:
        teacher: the source.
        student: the source with calibrated quantisers, as it would be exported without distillation.
        calibrate: inserts and calibrates quantisers in a plain model, in place.
        data: what to learn from and to judge by.
        batch: windows at a time where nothing is learned.

    Returns:
        (the better model, figures). The distilled one is better if its divergence from the teacher on held-out windows is lower
        by more than chance at `params.confidence`, one-sided, paired by window; else it is the student as it came, bit for bit.
        One whose weights or predictions are no finite numbers has no figures after.
    """
    before = standing(teacher, student, data, params, batch)
    learn(teacher, student, data.training, params, log)
    distilled = copy.deepcopy(teacher)
    transfer(student, distilled)
    if not is_finite(distilled, data.heldout[:batch]):
        log.note("distilled: weights or predictions that are no finite numbers, discarded; lower quantize.distil.lr")
        transfer(teacher, student)
        return student, {"distil_kept": 0.0, **_figures("before", before)}
    calibrate(distilled)
    after = standing(teacher, distilled, data, params, batch)
    gain, error = mean(before.divergence - after.divergence)
    is_better = fell(before.divergence, after.divergence, params.confidence)
    figures = {"distil_kept": float(is_better), "distil_kl_gain": gain, "distil_kl_gain_stderr": error,
               **_figures("before", before), **_figures("after", after)}
    figures["distil_exact_match_gain"], figures["distil_exact_match_gain_stderr"] = mean(after.solved - before.solved)
    log.note(f"distilled: {figures['distil_kl_before']:.4f} -> {figures['distil_kl_after']:.4f} nats, better by {gain:.4f} ± {error:.4f}; "
             f"{figures['distil_exact_match_before']:.1%} -> {figures['distil_exact_match_after']:.1%} of tasks; "
             + ("kept" if is_better else "not better, discarded"))
    if is_better:
        return distilled, figures
    transfer(teacher, student)
    return student, figures


def _figures(name: str, state: Standing) -> dict[str, float]:
    (kl, kl_error), (match, match_error) = mean(state.divergence), mean(state.solved)
    return {f"distil_kl_{name}": kl, f"distil_kl_{name}_stderr": kl_error,
            f"distil_exact_match_{name}": match, f"distil_exact_match_{name}_stderr": match_error}


@torch.no_grad()
def is_finite(model: torch.nn.Module, windows: Tensor) -> bool:
    """Whether weights and predictions are finite numbers; calibration raises an error of ModelOpt's own where they are not."""
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters()) \
        and bool(model(windows.to(model.device), use_cache=False).logits.isfinite().all())


def learn(teacher: torch.nn.Module, student: torch.nn.Module, windows: Tensor, params: Distillation, log: RunLog) -> None:
    """Train `student` in place on `windows`, `params.batch` at a step and `params.micro_batch` at a time, by AdamW.

    The learning rate falls to zero. The optimizer works on float32 copies: in bfloat16 a step of 1e-5 would be lost in the rounding of most
    weights. A step whose gradient is not finite changes nothing and has no figures.
    """
    log.rewind(-1)  # a stage that was killed starts over, its curve too
    learning = trainable(student)
    masters = [parameter.detach().float().clone().requires_grad_() for parameter in learning]
    optimizer, skipped = torch.optim.AdamW(masters, lr=params.lr, weight_decay=0.0), 0
    with log.bar("distilling", total=params.steps) as bar:
        for step, rows in enumerate(windows.to(student.device).split(params.batch), 1):
            optimizer.param_groups[0]["lr"] = rate = params.lr * (1 - (step - 1) / params.steps)
            optimizer.zero_grad()
            loss = sum(_learn_part(teacher, student, part, learning, masters, len(part) / len(rows))
                       for part in rows.split(params.micro_batch))
            norm = torch.nn.utils.clip_grad_norm_(masters, params.clip)
            if not norm.isfinite():
                skipped += 1
                bar.advance()
                continue
            optimizer.step()
            with torch.no_grad():
                for parameter, master in zip(learning, masters):
                    parameter.copy_(master)
            log.step(step, "distil", kl=loss, lr=rate, gradient_norm=norm.item())
            bar.advance(kl=loss)
    if skipped:
        log.note(f"distilling: {skipped} of {params.steps} steps skipped, their gradient was not finite")


def _learn_part(teacher: torch.nn.Module, student: torch.nn.Module, rows: Tensor, learning: list[torch.nn.Parameter],
                masters: list[Tensor], weight: float) -> float:
    """Add to the masters' gradients those of the divergence on `rows`, times `weight`; returns it, so weighted."""
    with torch.no_grad():
        target = teacher(rows, use_cache=False).logits.float().log_softmax(-1)
    predicted = student(rows, use_cache=False).logits.float().log_softmax(-1)
    loss = weight * F.kl_div(predicted.flatten(0, 1), target.flatten(0, 1), log_target=True, reduction="batchmean")
    for master, gradient in zip(masters, torch.autograd.grad(loss, learning, allow_unused=True)):
        if gradient is not None:
            master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
    return loss.item()


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The layers' weights except the router's."""
    fixed = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    return [parameter for name, parameter in model.named_parameters() if id(parameter) not in fixed and ROUTER not in name]


@torch.no_grad()
def transfer(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Copy all parameters by name; quantisers and their scales are no parameters."""
    values = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        parameter.copy_(values[name])


def standing(teacher: torch.nn.Module, student: torch.nn.Module, data: Mixture, params: Distillation, batch: int) -> Standing:
    """Measure a student on what it does not learn from."""
    return Standing(divergence_by_window(teacher, student, data.heldout, batch),
                    solved(student, data.tokenizer, data.prompts, params.max_new_tokens))


def fell(before: Tensor, after: Tensor, confidence: float) -> bool:
    """Whether the mean of paired values fell by more than chance: Student's t test, one-sided, at `confidence`."""
    gain, error = mean(before - after)
    return gain > float(stats.t.ppf(confidence, len(before) - 1)) * error


def mean(values: Tensor) -> tuple[float, float]:
    """(mean, its standard error)."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def plot(log: RunLog, figures: dict[str, float]) -> None:
    """The divergence on training batches while learning, and on the held-out windows before and after, if there is an after."""
    from matplotlib.figure import Figure

    curve, ends = log.curve("distil"), [name for name in ("before", "after") if f"distil_kl_{name}" in figures]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([row["step"] for row in curve], [row["kl"] for row in curve], label="batch learned from")
    places, label = [0, curve[-1]["step"] + 1 if curve else 1], "held out, calibrated, ± standard error"
    values, errors = ([figures[f"distil_kl_{name}{kind}"] for name in ends] for kind in ("", "_stderr"))
    axes.errorbar(places[:len(ends)], values, errors, fmt="o", capsize=4, color="black", label=label)
    axes.set(xlabel="step", ylabel="KL(teacher || student), nats per token", ylim=(0, None))
    axes.legend()
    log.figure("distillation", figure)
