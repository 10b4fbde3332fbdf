"""The planner against the world: one row per figure, published or measured beside predicted, with the error.

    python -m benchmarks.planner [--no-cpu] [--steps 5]

No number of the planner is fitted to a row it is checked with. `sustained` in efficiencies.yaml is the median over the rows of the
table "calibration", which are other models'; the rows of Nemotron 3 Super are predictions. Last come our own steps on this CPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.table import Table

from benchmarks.peers import peer
from stagecraft.contract.params import parse, read_profile
from stagecraft.model.config import Architecture
from stagecraft.planning.architecture import Model, nemotron_h
from stagecraft.planning.flops import training_flops
from stagecraft.planning.formats import formats
from stagecraft.planning.hardware import cluster, efficiencies
from stagecraft.planning.layout import Workload, parse_layout, problems
from stagecraft.planning.memory import State, training_memory
from stagecraft.planning.parameters import count
from stagecraft.planning.serving import Drafts, cache_bytes_per_token, fixed_bytes, sequence_bytes, serve, weight_bytes
from stagecraft.planning.step import Roofline, Step, training_step

PROFILE = read_profile(Path(__file__).parent.parent / "params" / "super-120b.yaml")
SUPER = nemotron_h(parse(Architecture, PROFILE["pretrain"]["architecture"], "architecture"), "Nemotron 3 Super")
NANO, GPT, QWEN = peer("nemotron-3-nano"), peer("gpt-oss-120b"), peer("qwen3.5-122b-a10b")
SMALL_QWEN, LARGE_QWEN = peer("qwen3-30b-a3b"), peer("qwen3-235b-a22b")
EFFICIENCY = efficiencies()
MIXED = State(gradient=2.0)  # the performance recipes sum gradients in BF16


@dataclass(frozen=True)
class Job:
    """A published training layout; `speed` is its tokens per second and GPU, if that was printed."""

    model: Model
    gpus: str
    layout: str
    work: Workload
    precision: str
    speed: float | None = None

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.model.name}, {self.gpus}, {self.precision}, {self.layout}"

    def step(self, sustained: float) -> Step:
        """The prediction."""
        machines = cluster(self.gpus)
        layout, recipe = parse_layout(self.layout, machines.count), formats("training", self.precision).on(machines.gpu)
        for problem in problems(layout, self.model, self.work, machines.count):
            raise ValueError(f"{self.name}: {problem}")
        return training_step(self.model, self.work, layout, Roofline(machines.gpu, replace(EFFICIENCY, sustained=sustained)), recipe,
                             MIXED)


# Megatron-Bridge, docs/performance-summary.md, release 25.11: every MoE row on GB300 and GB200 but DeepSeek-V3, whose attention is not
# modelled. Tokens are dealt evenly to the experts there ("force-balance").
CALIBRATION = (
    Job(GPT, "64xGB300", "ep=64,micro=2", Workload(8192, 1280), "bf16", 18347),
    Job(GPT, "64xGB200", "ep=64", Workload(8192, 1280), "bf16", 15876),
    Job(SMALL_QWEN, "8xGB300", "ep=8,micro=4", Workload(4096, 512), "mxfp8", 28934),
    Job(SMALL_QWEN, "8xGB200", "ep=8,micro=4", Workload(4096, 512), "mxfp8", 23766),
    Job(LARGE_QWEN, "256xGB300", "pp=4,ep=16,micro=2", Workload(4096, 8192), "bf16", 6131),
    Job(LARGE_QWEN, "256xGB200", "pp=8,ep=32", Workload(4096, 8192), "bf16", 4916),
)
# The step that NVIDIA published for Nemotron 3 Super; its batch is that of the recipe (scripts/performance, GBS 512, MBS 1).
PUBLISHED = Job(SUPER, "64xGB300", "ep=64", Workload(8192, 512, mtp_depths=2), "nvfp4", 10308)
# Layouts that are known to run. Recomputation is what the recipe names, or nothing.
KNOWN = (
    PUBLISHED,
    Job(SUPER, "64xB200", "tp=2,ep=64", Workload(8192, 512, 2), "nvfp4"),
    Job(SUPER, "64xGB200", "ep=64,recompute=moe", Workload(8192, 512, 2), "mxfp8"),
    Job(SUPER, "64xH100", "pp=2,ep=32,recompute=full", Workload(8192, 512, 2), "bf16"),
    *CALIBRATION,
)


# The recipes list this one without saying what it trains: 16 bytes a parameter are more than 16 GPUs have, frozen weights are not.
LISTED = Job(SUPER, "16xH100", "tp=8,ep=16,recompute=full", Workload(8192, 512, 2), "bf16")


def row(name: str, known: float, predicted: float, unit: str = "", digits: str = ".4g") -> tuple[str, ...]:
    """A line with its error."""
    return name, f"{known:{digits}}{unit}", f"{predicted:{digits}}{unit}", f"{predicted / known - 1:+.1%}"


def counts() -> Iterator[tuple[str, ...]]:
    """Parameters. Conventions of `active` differ: with both tables (Super), the head alone (GPT-OSS, Nano)."""
    for name, model, total, active, tables in (
            ("Nemotron 3 Super (arXiv 2604.12374)", SUPER, 120.6, 12.7, 2), ("GPT-OSS-120B (arXiv 2508.10925)", GPT, 116.83, 5.13, 1),
            ("Qwen3.5-122B-A10B (its name)", QWEN, 122.0, 10.0, 2), ("Nemotron 3 Nano (arXiv 2512.20848)", NANO, 31.6, 3.2, 1)):
        found = count(model)
        yield row(f"{name}, total", total, found.total / 1e9, " B")
        yield row(f"{name}, active", active, (found.active - (2 - tables) * model.embedding) / 1e9, " B")


def bytes_per_sequence() -> Iterator[tuple[str, ...]]:
    """Cache per token and fixed state."""
    for name, model, precision, cache, fixed in (
            ("Nemotron 3 Super, FP8 cache, FP16 state", SUPER, "nvfp4", 4096, 86),
            ("Nemotron 3 Super, FP32 state", SUPER, "bf16", 8192, 170),
            ("GPT-OSS-120B, FP8 cache", GPT, "mxfp4", 18432, 2.4), ("Qwen3.5-122B, BF16 cache", QWEN, "bf16", 24576, 154)):
        recipe = formats("serving", precision)
        yield row(f"{name}: cache per token", cache, cache_bytes_per_token(model.layers, recipe), " B", ",.0f")
        yield row(f"{name}: state", fixed, fixed_bytes(model, recipe) / 1e6, " MB", ".3g")


def calibration() -> tuple[list[tuple[str, ...]], list[float]]:
    """(rows, their ratios of published to roofline)."""
    ratios = [(job, job.step(1.0).tokens_per_gpu) for job in CALIBRATION]
    rows = [(job.name, f"{job.speed:,.0f}", f"{roofline:,.0f}", f"{job.speed / roofline:.3f}") for job, roofline in ratios]
    return rows, [job.speed / roofline for job, roofline in ratios]


def published_step() -> Iterator[tuple[str, ...]]:
    """FLOPs per token, and the step of 64 GB300."""
    flops = training_flops(SUPER, 8192, 2)
    counted = 873e12 / 10308 / 1e9
    yield row("FLOP per token: 873 TFLOP/s / 10,308; every term of ours, two MTP depths", counted, sum(flops.values()) / 1e9, " G")
    # megatron/training/training.py counts no router, no join of the MTP block, no convolution, and 7 d_inner d_state for the scan.
    scan = next(SUPER.of("mamba")).core
    left_out = flops["router"] + flops["convolution"] + flops["scan"]
    mtp = 2 * 3 * sum(2 * p.inputs * p.outputs for layer in SUPER.mtp for p in layer.products if p.operator in ("mtp join", "router"))
    theirs = sum(flops.values()) - left_out - mtp + 3 * len(list(SUPER.of("mamba"))) * 7 * scan.heads * scan.dim * scan.state
    yield row("FLOP per token, the terms that Megatron counts", counted, theirs / 1e9, " G")
    predicted, bound = PUBLISHED.step(EFFICIENCY.sustained), PUBLISHED.step(1.0)
    yield row("tokens/s per GPU, predicted", 10308, predicted.tokens_per_gpu, "", ",.0f")
    yield row("model TFLOP/s per GPU, predicted", 873, predicted.flops_per_gpu / 1e12, "", ",.0f")
    yield row("tokens/s per GPU, roofline alone (sustained = 1)", 10308, bound.tokens_per_gpu, "", ",.0f")


def known_layouts() -> Iterator[tuple[str, ...]]:
    """Does what is known to run fit?"""
    frozen = State(gradient=0.0, optimizer=0.0)
    jobs = [(job, job.name, MIXED, True) for job in KNOWN]
    jobs += [(LISTED, f"{LISTED.name}, all weights trained", MIXED, False), (LISTED, f"{LISTED.name}, weights frozen", frozen, True)]
    for job, name, state, runs in jobs:
        machines = cluster(job.gpus)
        memory = training_memory(job.model, job.work, parse_layout(job.layout, machines.count),
                                 formats("training", job.precision).on(machines.gpu), state)
        yield _fits(name, memory.total, machines.gpu.memory * EFFICIENCY.memory_use, runs)
    for precision, gpus, fits in (("bf16", "4xH100", True), ("bf16", "2xH100", False), ("fp8", "2xH100", True), ("fp8", "1xH100", False),
                                  ("nvfp4", "1xB200", True), ("bf16", "1xB200", False)):
        machines, recipe = cluster(gpus), formats("serving", precision)
        needed = (weight_bytes(SUPER, recipe) + sequence_bytes(SUPER, recipe, 8192, gpus=machines.count)) / machines.count
        yield _fits(f"Nemotron 3 Super served in {precision} on {gpus}", needed, machines.gpu.memory * EFFICIENCY.serving_memory_use, fits)


def _fits(name: str, needed: float, limit: float, known: bool) -> tuple[str, ...]:
    predicted = needed <= limit
    return (name, "runs" if known else "does not", f"{needed / 1e9:.1f} of {limit / 1e9:.1f} GB",
            "agrees" if predicted == known else f"WRONG by {(needed - limit) / 1e9:+.1f} GB")


def decode() -> Iterator[tuple[str, ...]]:
    """8k in, 64k out on B200, by plain roofline (no `sustained`); GPUs an engine as few as hold the weights."""
    machine = Roofline(cluster("B200").gpu, EFFICIENCY)

    def speed(model: Model, precision: str, gpus: int, drafts: Drafts | None = None) -> float:
        return serve(model, formats("serving", precision), machine, 8192, 65536, gpus=gpus, drafts=drafts).tokens

    ours = speed(SUPER, "nvfp4", 1)
    yield row("x GPT-OSS-120B, the paper's precisions (NVFP4 / MXFP4)", 2.2, ours / speed(GPT, "mxfp4", 1), "x", ".2f")
    yield "  like for like: both BF16, two GPUs", "", f"{speed(SUPER, 'bf16', 2) / speed(GPT, 'bf16', 2):.2f}x", ""
    yield row("x Qwen3.5-122B, the paper's precisions (NVFP4 / BF16 on two GPUs)", 7.5, ours / speed(QWEN, "bf16", 2), "x", ".2f")
    yield "  like for like: both BF16, two GPUs", "", f"{speed(SUPER, 'bf16', 2) / speed(QWEN, 'bf16', 2):.2f}x", ""
    yield "  like for like: both FP8, one GPU", "", f"{speed(SUPER, 'fp8', 1) / speed(QWEN, 'fp8', 1):.2f}x", ""
    yield "Nemotron 3 Super NVFP4, tokens/s per GPU", "", f"{ours:,.0f}", ""
    for drafts in (Drafts.expected(3), Drafts(7, 3.45)):
        yield (f"  with {drafts.length} drafts, {drafts.accepted:.2f} tokens a step", "",
               f"{speed(SUPER, 'nvfp4', 1, drafts):,.0f}", "")


def own_runs(steps: int) -> Iterator[tuple[str, ...]]:
    """Three sizes on this CPU."""
    from benchmarks.planner_cpu import SIZES, run

    for size in SIZES:
        result = run(size, steps)
        yield row(f"{size}: {result.parameters:,} parameters, {result.rate / 1e9:.0f} GFLOP/s, {result.bandwidth / 1e9:.0f} GB/s",
                  result.measured, result.predicted, " s", ".3f")


def show(console: Console, title: str, columns: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> None:
    """One table."""
    table = Table(*columns)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for line in rows:
        table.add_row(*line)
    console.print(title, style="bold", highlight=False)
    console.print(table)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-cpu", action="store_true", help="leave out the runs on this machine")
    parser.add_argument("--steps", type=int, default=5, help="of each run on this machine (default: %(default)s)")
    options = parser.parse_args()
    console, columns = Console(width=140), ("", "published", "predicted", "error")
    show(console, "parameters", columns, counts())
    show(console, "bytes of a sequence", columns, bytes_per_sequence())
    rows, ratios = calibration()
    show(console, "calibration: other models, tokens/s per GPU", ("", "published", "roofline", "ratio"), rows)
    bound = PUBLISHED.step(1.0).tokens_per_gpu
    console.print(f"median ratio {statistics.median(ratios):.3f}; sustained in efficiencies.yaml is {EFFICIENCY.sustained:g}. "
                  f"The least and the largest ratio would put the next table's step at {min(ratios) * bound:,.0f} and "
                  f"{max(ratios) * bound:,.0f} tokens/s per GPU.\n", highlight=False)
    show(console, "Nemotron 3 Super, step on 64 GB300", columns, published_step())
    show(console, "memory per GPU of known layouts", ("", "known", "predicted", ""), known_layouts())
    show(console, "decoding, 8k in / 64k out, B200, tokens/s per GPU", columns, decode())
    if not options.no_cpu:
        show(console, "our own steps on this CPU", ("", "measured", "predicted", "error"), own_runs(options.steps))


if __name__ == "__main__":
    main()
