"""What every rank of pre-training runs: build, resume, step, checkpoint; held-out loss at the end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from stagecraft.megatron_cpu import ON_CPU

import torch
import torch.distributed as dist
from torch import Tensor

from components.pretrain.params import Params
from stagecraft.contract.runlog import RunLog
from stagecraft.data.blend import read_blend
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.engine import loop, parallel
from stagecraft.engine.datasets import batch_of, open_blend
from stagecraft.engine.trainer import Optimization, StepResult, Trainer


@dataclass
class Result:
    """The trained model and what is known of it."""

    weights: dict[str, Tensor]
    parameters: int
    heldout_loss: float
    bytes_per_token: float
    tokens_per_second: float


def train(params: Params, corpus: Path, work: Path, log: RunLog | None) -> Result:
    """Train on this rank; `log` on rank 0 only."""
    torch.set_num_threads(1)
    parallel.initialize(params.seed, params.layout)
    first, per_rank = parallel.share(params.global_batch // params.micro_batch, "microbatches")
    tokenizer = load_tokenizer(corpus / "tokenizer")
    common = {"sequence_length": params.sequence_length, "eod": tokenizer.convert_tokens_to_ids("</s>"), "pad": tokenizer.pad_token_id,
              "vocab_size": len(tokenizer), "seed": params.seed}
    rows = open_blend(read_blend(corpus, params.blend), samples=params.steps * params.global_batch, cache=work / "index", **common)
    trainer = Trainer(
        params.architecture, Optimization.of(params), max_sequence_length=params.sequence_length, precision=params.precision,
        mtp_depths=params.mtp_depths, mtp_loss_scale=params.mtp_loss_scale, expert_bias_rate=params.expert_bias_rate,
        aux_loss=params.aux_loss)
    if log:
        announce(params, trainer, log)

    def step() -> StepResult:
        start = trainer.steps_done * params.global_batch + first * params.micro_batch
        starts = range(start, start + per_rank * params.micro_batch, params.micro_batch)
        return trainer.step([batch_of(rows, range(at, at + params.micro_batch)) for at in starts])

    rate = loop.run(trainer, step, name="pretrain", work=work, checkpoint_every=params.checkpoint_every, log=log)
    heldout_loss = evaluate(trainer, params, corpus, work, common)
    weights = trainer.weights()
    parameters = sum(tensor.numel() for name, tensor in weights.items() if "e_score_correction_bias" not in name)  # which is a buffer
    result = Result(weights, parameters, heldout_loss, bytes_per_token(corpus, tokenizer), rate)
    parallel.shutdown()
    return result


def announce(params: Params, trainer: Trainer, log: RunLog) -> None:
    """Say and record what was asked for and what computes: never silently another format."""
    formats: dict[str, int] = {}
    for module in trainer.module.modules():
        if hasattr(module, "precision"):
            name = module.precision or "unquantised"
            formats[name] = formats.get(name, 0) + 1
    dtype = str(trainer.config.params_dtype).removeprefix("torch.")
    actual = f"emulated: values rounded exactly, products in {dtype}" if params.precision == "nvfp4" else dtype
    device = "CPU" if ON_CPU else torch.cuda.get_device_name()
    log.note(f"precision {params.precision} ({actual}) on {device}; layers per format: "
             + ", ".join(f"{name} {count}" for name, count in sorted(formats.items())))
    log.record(precision_requested=params.precision, precision_actual=actual, layers_per_format=formats, device=device,
               processes=dist.get_world_size())


def evaluate(trainer: Trainer, params: Params, corpus: Path, work: Path, common: dict) -> float:
    """Mean next-token loss (nats) over the first `heldout_rows` rows of held-out text, unquantised; the same on every rank."""
    rows = open_blend(read_blend(corpus, "heldout"), samples=params.heldout_rows, cache=work / "index", **common)
    sums = [trainer.loss(batch_of(rows, range(at, min(at + params.micro_batch, params.heldout_rows))))
            for at in range(0, params.heldout_rows, params.micro_batch)]
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
