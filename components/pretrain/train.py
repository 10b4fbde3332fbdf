"""What every rank of pre-training runs: build, resume, step, checkpoint; held-out loss at the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import stagecraft.megatron_cpu  # noqa: F401

import torch
import torch.distributed as dist
from torch import Tensor

from components.pretrain.params import Params
from components.pretrain.rows import Heldout, PhaseRows, TokenFiles
from stagecraft.contract.runlog import RunLog
from stagecraft.engine import loop, parallel, row_order
from stagecraft.engine.computes import record, rungs_of
from stagecraft.engine.launch import world_size
from stagecraft.engine.layout import Layout
from stagecraft.engine.merging import Merger
from stagecraft.engine.phases import rows_read
from stagecraft.engine.together import together
from stagecraft.engine.trainer import Optimization, StepResult, Trainer
from stagecraft.engine.watchdog import group_timeout, of_this_rank
from stagecraft.model.hardware import Hardware
from stagecraft.model.ladder import check, refuse_emulation
from stagecraft.model.precision import as_yaml


@dataclass
class Result:
    """The trained model and what is known of it."""

    weights: dict[str, Tensor]
    parameters: int
    heldout_loss: float


def train(params: Params, corpus: Path, work: Path, log: RunLog | None) -> Result:
    """Train on this rank; `log` on rank 0 only.

    Raises:
        UserError: as `Params.check_ranks` and `announce`, before any work; as `loop.run`.
    """
    params.check_ranks(world_size())
    torch.set_num_threads(1)
    files = TokenFiles(corpus, work / "index")
    trainer = built(params, params.layout)
    announce(params, trainer, log)
    watchdog = of_this_rank(work, params.hang_seconds)
    first = dist.get_rank() == 0
    together((lambda: row_order.unseal(files.cache)) if first else None)
    rows, heldout_rows = PhaseRows(files, params.phases, params.seed), Heldout(files, params)
    together((lambda: row_order.seal(files.cache)) if first else None)

    def run(until: int) -> None:
        """Go on to step `until` with the trainer there is, in whose layout all phases up to then are."""
        def step() -> StepResult:
            return trainer.step(rows.read(trainer.steps_done, partial(parallel.share, where="pretrain.global_batch / micro_batch")))

        loop.run(trainer, step, name="pretrain", work=work, checkpoint_every=params.checkpoint_every, log=log, until=until,
                 keep=params.keep_checkpoints, max_skipped=params.max_skipped_steps, beat=watchdog.beat, between=look,
                 extra=lambda: {"rows": rows_read(trainer.steps_done, params.phases)})

    def heldout(count: int) -> float:
        return heldout_rows.loss(trainer, count, watchdog.beat)

    # A kill may come as late as the next checkpoint's step, while the last one is still being written: then it is two back.
    merger = Merger(params.merge, work / "merging", trainer.module, reach=2 * params.checkpoint_every, after=params.warmup_steps,
                    note=log.note if log else lambda _: None, beat=lambda: watchdog.beat(trainer.steps_done))

    def look() -> None:
        done, merged = trainer.steps_done, None
        if params.warmup_steps < done <= params.steps:
            merged = merger.look(done, lambda: heldout(params.heldout_look_rows))
        if merged is not None or (params.heldout_every and done % params.heldout_every == 0):
            losses = {"loss": heldout(params.heldout_look_rows), **({} if merged is None else {"merged": merged})}
            if log:
                log.step(done, curve="heldout", **losses)
        if done == params.steps and params.long_context.steps:
            settle()

    def settle() -> float:
        """At the end of the decay: the held-out loss of the weights that go on, which may be the merged ones."""
        last = heldout(params.heldout_rows)
        merged = merger.goes_on(params.steps, lambda: heldout(params.heldout_rows), last)
        if merger.merged:
            trainer.optimizer.reload_model_params()
        if merged and log:
            log.rewind(params.steps - 1, "merged")  # a run that failed after this has told it
            log.step(params.steps, curve="merged", heldout_loss_last=last, heldout_loss_merged=merged, merged=merger.merged)
        return merged if merger.merged else last

    with watchdog:
        run(params.steps)
        if params.long_context.steps:
            if params.long_context.layout != params.layout:
                del trainer, merger
                parallel.leave_groups()
                trainer = built(params, params.long_context.layout)
            run(params.steps + params.long_context.steps)
            heldout_loss = heldout(params.heldout_rows)
        else:
            heldout_loss = settle()
        for settled in log.curve("merged") if log else ():
            log.note(f"held-out loss {settled['heldout_loss_last']:.4f} of the last weights, {settled['heldout_loss_merged']:.4f} merged: "
                     + ("the merged ones go on" if settled["merged"] else "the last ones go on"))
            log.record(merged=bool(settled["merged"]), **{key: settled[key] for key in ("heldout_loss_last", "heldout_loss_merged")})
        weights = trainer.weights()
    parameters = sum(tensor.numel() for name, tensor in weights.items() if "e_score_correction_bias" not in name)  # which is a buffer
    parallel.shutdown()
    return Result(weights, parameters, heldout_loss)


def built(params: Params, layout: Layout) -> Trainer:
    """The model before its first step, divided over the ranks.

    Raises:
        UserError: a layer does not compute in the recipe's format.
    """
    parallel.initialize(params.seed, layout, group_timeout(params.hang_seconds))
    optimization = replace(Optimization.of(params), further_steps=params.long_context.steps, further_lr=params.long_context.lr)
    trainer = Trainer(
        params.architecture, optimization, max_sequence_length=max(phase.length for phase in params.phases), precision=params.precision,
        dtype=getattr(torch, params.dtype), mtp_depths=params.mtp_depths, mtp_loss_scale=params.mtp_loss_scale,
        expert_bias_rate=params.expert_bias_rate, aux_loss=params.aux_loss, diagnose_every=params.diagnose_every,
        recompute=layout.recompute)
    check(trainer.module, trainer.config.quant_recipe)
    return trainer


def announce(params: Params, trainer: Trainer, log: RunLog | None) -> None:
    """Say and record what was asked for and what computes, per class of layer; refuse what `emulate: false` rules out.

    Raises:
        UserError: a format would be emulated, or does not take a size that a layer has on a rank in any of the phases.
    """
    hardware = Hardware.of(trainer.config)
    rungs, *_ = [rungs_of(trainer, layout.tensor) for layout in params.layouts]  # a later phase's layers have other sizes on a rank
    if not params.emulate:
        refuse_emulation(rungs, hardware)
    if log:
        log.note(f"precision {params.precision} on {hardware.name}; class of layers, how many: requested -> actual")
        for rung in rungs:
            log.note(f"  {rung}")
        record(log, trainer, params.precision, rungs)
        log.record(precision_recipe=as_yaml(trainer.config.quant_recipe.resolved))
