"""What every rank of test_layouts.py runs: the same steps under one layout after the other (tests/layouts.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from stagecraft.megatron_cpu import ON_CPU  # noqa: F401

import torch
from megatron.core import parallel_state

from stagecraft.engine import checkpoints, parallel
from stagecraft.engine import trainer as engine
from stagecraft.engine.batch import Batch
from stagecraft.engine.layout import Layout
from stagecraft.engine.packs import packed_batch
from stagecraft.engine.together import together
from stagecraft.engine.trainer import Optimization, Trainer
from stagecraft.model import products
from tests.architectures import tiny
from tests.layouts import tell

SHAPES = tiny(hybrid_override_pattern="M*EME", num_key_value_heads=2)
SCHEDULE = Optimization(lr=2e-3, min_lr=1e-4, steps=12, warmup_steps=3, decay_steps=4, weight_decay=0.1)
ROWS, STEPS = 4, 3
PLAIN = {"precision": "bf16", "mtp_depths": 0, "aux_loss": 0.0}


def rows_of(step: int) -> Batch:
    """The global batch of a step: 4 rows of 32 tokens, some without a loss."""
    row = torch.randint(0, 60, (ROWS, 17), generator=torch.Generator().manual_seed(step)).repeat(1, 2)[:, :33]
    mask = torch.ones(ROWS, 32)
    mask[step % ROWS, 20:] = 0
    return Batch(row[:, :-1].contiguous(), row[:, 1:].contiguous(), mask)


def packed(row: Batch, at: int, means: bool) -> Batch:
    """The row as two sequences of uneven lengths, filled up to what the layout divides; the loss is summed, or that of each a mean."""
    ids, cut = [*row.tokens[0].tolist(), int(row.labels[0, -1])], 11 + 2 * at
    return packed_batch([(part, [1 / len(part) if means else 1] * len(part)) for part in (ids[:cut], ids[cut:-at or None])])


def part(batch: Batch, micro: int) -> list[Batch]:
    """This data-parallel rank's share of it, in microbatches; rows apart if micro is 0 or below: packed, and below 0 with means."""
    share = ROWS // parallel_state.get_data_parallel_world_size()
    start = share * parallel_state.get_data_parallel_rank()
    if micro <= 0:
        rows = (Batch(*(t[at:at + 1] for t in (batch.tokens, batch.labels, batch.loss_mask))) for at in range(start, start + share))
        return [packed(row, at, means=micro < 0) for at, row in enumerate(rows, start)]
    return [Batch(*(t[at:at + micro] for t in (batch.tokens, batch.labels, batch.loss_mask))) for at in range(start, start + share, micro)]


def trainer_of(weights, dtype="float32", scaling=SHAPES.routed_scaling_factor, **options) -> Trainer:
    """`scaling`: of what the routed experts add, and with it their share of the gradient's norm."""
    return Trainer(replace(SHAPES, routed_scaling_factor=scaling), SCHEDULE, max_sequence_length=32, weights=weights,
                   dtype=getattr(torch, dtype), **{**PLAIN, **options})


def take(trainer: Trainer, steps: int, micro: int) -> list[list[float]]:
    """Loss, gradient norm, tokens and MTP losses of further steps."""
    found = []
    for _ in range(steps):
        result = trainer.step(part(rows_of(trainer.steps_done), micro))
        found.append([result.loss, result.grad_norm, result.tokens, *result.mtp_losses])
    return found


def formats(trainer: Trainer) -> list[str]:
    """The format of every layer that has one, of all ranks, by its number in the whole model."""
    own = {f"{name} {module.precision}" for layer in trainer.module.decoder.layers
           for name, module in layer.named_modules(prefix=str(layer.layer_number)) if hasattr(module, "precision")}
    return sorted(set().union(*together(lambda: own)))


@contextmanager
def to_nearest() -> Iterator[None]:
    """Gradients rounded to nearest: the noise of stochastic rounding is each rank's own."""
    given = products._round
    products._round = lambda *args, **options: given(*args, **{**options, "stochastic": False})
    yield
    products._round = given


def run(weights, case: dict, directory: Path) -> tuple[dict, dict]:
    """One case: {"layout": sizes, "options": of the trainer, "micro": rows, "resume": layout to go on in, if any, "fresh": no weights}."""
    parallel.initialize(7, Layout(**case["layout"]))
    options = {**case.get("options", {}), "recompute": case["layout"].get("recompute", "none")}
    trainer = trainer_of(None if "fresh" in case else weights, **options)
    if "fresh" in case:
        whole = trainer.weights()
        parallel.leave_groups()
        return {}, whole
    micro, told = case.get("micro", 1), {}
    told["steps"] = take(trainer, STEPS, micro)
    told["heldout"] = trainer.loss(rows_of(99))
    told["formats"] = formats(trainer)
    if "resume" in case:
        checkpoints.save(directory / "checkpoints", trainer)
        parallel.leave_groups()  # and not the process group: gloo does not come up twice under torchrun
        parallel.initialize(7, Layout(**case["resume"]))
        trainer = trainer_of(None, **options)
        checkpoints.resume(directory / "checkpoints", trainer)
    told["after"] = take(trainer, STEPS, micro)
    whole = trainer.weights()
    parallel.leave_groups()
    return told, whole


def to_the_nearest(weights, case: dict, directory: Path) -> tuple[dict, dict]:
    """`run`, with gradients rounded as one process rounds them."""
    with to_nearest():
        return run(weights, case, directory)


if __name__ == "__main__":
    # Of so few parameters all would lie in one bucket, which is sent when the last gradient is there.
    engine.DistributedDataParallelConfig = partial(engine.DistributedDataParallelConfig, bucket_size=3000)
    tell(to_the_nearest)
