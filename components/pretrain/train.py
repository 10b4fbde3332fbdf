"""What every rank of pre-training runs: build, resume, step, checkpoint; held-out loss at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

import stagecraft.megatron_cpu  # noqa: F401

import torch
import torch.distributed as dist
from torch import Tensor

from components.pretrain.params import Params
from stagecraft.contract.runlog import RunLog
from stagecraft.data.blend import read_blend
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.engine import loop, parallel, row_order
from stagecraft.engine.datasets import batch_of, open_blend
from stagecraft.engine.launch import world_size
from stagecraft.engine.layout import Layout
from stagecraft.engine.merging import Merger
from stagecraft.engine.phases import read_at, rows_read
from stagecraft.engine.together import together
from stagecraft.engine.trainer import Optimization, StepResult, Trainer
from stagecraft.engine.watchdog import Watchdog
from stagecraft.model.hardware import Hardware
from stagecraft.model.ladder import check, ladder, refuse_emulation, resolve
from stagecraft.model.precision import as_yaml


@dataclass
class Result:
    """The trained model and what is known of it."""

    weights: dict[str, Tensor]
    parameters: int
    heldout_loss: float
    bytes_per_token: float
    tokens_per_second: float


def train(params: Params, corpus: Path, work: Path, log: RunLog | None) -> Result:
    """Train on this rank; `log` on rank 0 only.

    Raises:
        UserError: as `Params.check_ranks` and `announce`, before any work; as `loop.run`.
    """
    params.check_ranks(world_size())
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(corpus / "tokenizer")
    common = {"eod": tokenizer.convert_tokens_to_ids("</s>"), "pad": tokenizer.pad_token_id, "vocab_size": len(tokenizer),
              "seed": params.seed, "cache": work / "index"}
    trainer = built(params, params.layout)
    announce(params, trainer, log)
    watchdog = Watchdog(work / "ranks", dist.get_rank(), dist.get_world_size(), params.hang_seconds)
    first = dist.get_rank() == 0
    together((lambda: row_order.unseal(common["cache"])) if first else None)
    rows = {phase: open_blend(read_blend(corpus, phase.blend), samples=phase.rows, sequence_length=phase.length,
                              **{**common, "seed": params.seed + phase.number}) for phase in params.phases}
    together((lambda: row_order.seal(common["cache"])) if first else None)

    def run(until: int, between: Callable[[], None] = lambda: None) -> tuple[int, float]:
        """Go on to step `until` with the trainer there is, in whose layout all phases up to then are."""
        shares = {(phase, batch): parallel.share(batch // phase.micro, "pretrain.global_batch / micro_batch")
                  for phase in params.phases for batch in phase.batches if phase.start < until}

        def step() -> StepResult:
            phase, at, batch = read_at(trainer.steps_done, params.phases)
            first, count = shares[phase, batch]
            starts = range(at + first * phase.micro, at + (first + count) * phase.micro, phase.micro)
            return trainer.step([batch_of(rows[phase], range(at, at + phase.micro)) for at in starts])

        return loop.run(trainer, step, name="pretrain", work=work, checkpoint_every=params.checkpoint_every, log=log, until=until,
                        keep=params.keep_checkpoints, max_skipped=params.max_skipped_steps, beat=watchdog.beat, between=between,
                        extra=lambda: {"rows": rows_read(trainer.steps_done, params.phases)})

    def heldout(rows: int) -> float:
        return evaluate(trainer, params, corpus, common, rows, watchdog.beat)

    # A kill may come as late as the next checkpoint's step, while the last one is still being written: then it is two back.
    merger = Merger(params.merge, work / "merging", trainer.module, reach=2 * params.checkpoint_every, after=params.warmup_steps,
                    note=log.note if log else lambda _: None)

    def look() -> None:
        done = trainer.steps_done
        if params.warmup_steps < done <= params.steps and (losses := merger.look(done, heldout)) and log:
            log.step(done, curve="merging", **losses)
        if done == params.steps and params.long_context.steps:
            settle()

    def settle() -> float:
        """At the end of the decay: the held-out loss of the weights that go on, which may be the merged ones."""
        last = heldout(params.heldout_rows)
        merged = merger.goes_on(params.steps, lambda: heldout(params.heldout_rows), last)
        if merger.merged:
            trainer.optimizer.reload_model_params()
        if merged and log:
            log.step(params.steps, curve="merged", heldout_loss_last=last, heldout_loss_merged=merged, merged=merger.merged)
        return merged if merger.merged else last

    with watchdog:
        tokens, seconds = run(params.steps, look)
        if params.long_context.steps:
            if params.long_context.layout != params.layout:
                del trainer, merger
                parallel.leave_groups()
                trainer = built(params, params.long_context.layout)
            further = run(params.steps + params.long_context.steps)
            tokens, seconds = tokens + further[0], seconds + further[1]
            heldout_loss = heldout(params.heldout_rows)
        else:
            heldout_loss = settle()
        for settled in log.curve("merged") if log else ():
            log.note(f"held-out loss {settled['heldout_loss_last']:.4f} of the last weights, {settled['heldout_loss_merged']:.4f} merged: "
                     + ("the merged ones go on" if settled["merged"] else "the last ones go on"))
            log.record(merged=bool(settled["merged"]), **{key: settled[key] for key in ("heldout_loss_last", "heldout_loss_merged")})
        weights = trainer.weights()
    parameters = sum(tensor.numel() for name, tensor in weights.items() if "e_score_correction_bias" not in name)  # which is a buffer
    result = Result(weights, parameters, heldout_loss, bytes_per_token(corpus, tokenizer), tokens / seconds)
    parallel.shutdown()
    return result


def built(params: Params, layout: Layout) -> Trainer:
    """The model before its first step, divided over the ranks.

    Raises:
        UserError: a layer does not compute in the recipe's format.
    """
    # The watchdog, which names the rank that is waited for, is to end a rank that waits, not the group's own timeout.
    parallel.initialize(params.seed, layout, timedelta(seconds=2 * params.hang_seconds) if params.hang_seconds else timedelta(days=365))
    optimization = replace(Optimization.of(params), further_steps=params.long_context.steps, further_lr=params.long_context.lr)
    trainer = Trainer(
        params.architecture, optimization, max_sequence_length=max(phase.length for phase in params.phases), precision=params.precision,
        dtype=getattr(torch, params.dtype), mtp_depths=params.mtp_depths, mtp_loss_scale=params.mtp_loss_scale,
        expert_bias_rate=params.expert_bias_rate, aux_loss=params.aux_loss, diagnose_every=params.diagnose_every)
    check(trainer.module, trainer.config.quant_recipe)
    return trainer


def announce(params: Params, trainer: Trainer, log: RunLog | None) -> None:
    """Say and record what was asked for and what computes, per class of layer; refuse what `emulate: false` rules out.

    Raises:
        UserError: a format would be emulated.
    """
    hardware = Hardware.of(trainer.config)
    rungs = ladder(resolve(params.architecture, params.precision, hardware, mtp=trainer.mtp, dtype=trainer.config.params_dtype,
                           tensor=params.layout.tensor))
    if not params.emulate:
        refuse_emulation(rungs, hardware)
    if log:
        log.note(f"precision {params.precision} on {hardware.name}; class of layers, how many: requested -> actual")
        for rung in rungs:
            log.note(f"  {rung}")
        log.record(precision_requested=params.precision, precision_actual="; ".join(sorted({rung.actual for rung in rungs})),
                   precision_ladder=[asdict(rung) for rung in rungs], precision_recipe=as_yaml(trainer.config.quant_recipe.resolved),
                   device=hardware.name, processes=dist.get_world_size())


def evaluate(trainer: Trainer, params: Params, corpus: Path, common: dict, count: int,
             beat: Callable[[int], None] = lambda _: None) -> float:
    """Mean next-token loss (nats) over the first `count` of `heldout_rows` rows of held-out text, unquantised; the same on every rank.

    `beat` is called before every batch with the steps done.
    """
    rows = open_blend(read_blend(corpus, "heldout"), samples=params.heldout_rows, sequence_length=params.sequence_length, **common)
    count = min(count, params.heldout_rows)
    sums = []
    for at in range(0, count, params.micro_batch):
        beat(trainer.steps_done)
        sums.append(trainer.loss(batch_of(rows, range(at, min(at + params.micro_batch, count)))))
    return sum(loss for loss, _ in sums) / sum(count for _, count in sums)


def bytes_per_token(corpus: Path, tokenizer: object) -> float:
    """UTF-8 bytes of held-out text per token, end-of-document tokens counted."""
    bytes_, tokens = 0, 0
    with (corpus / "heldout" / "text.jsonl").open() as stream:
        for line in stream:
            text = json.loads(line)["text"]
            bytes_ += len(text.encode())
            tokens += len(tokenizer.encode(text, add_special_tokens=False)) + 1
    return bytes_ / tokens
