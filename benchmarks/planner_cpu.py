"""Our own training steps on this CPU against the planner's prediction from this machine's measured rates.

    python -m benchmarks.planner_cpu [--steps 5]

The rates are measured by microbenchmarks of torch alone: matrix products of the size classes that a model has, element-wise passes
whose results are kept, attention, batched products of a chunk. Steps and rates are taken in turn, in seconds of this process's CPU
time, so that other load on the machine bears on both; the medians are compared. Counts of passes are read off the code of the model,
not off its timings; hence PyTorch's operators run here, and not the C++ loops that take some passes together.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["STAGECRAFT_NUMERICS"] = "eager"

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from stagecraft.engine import parallel
from stagecraft.engine.batch import Batch
from stagecraft.engine.trainer import Optimization, Trainer
from stagecraft.model.config import Architecture
from stagecraft.planning.architecture import Attention, Model, Product, Scan, nemotron_h
from stagecraft.planning.flops import attention_flops
from stagecraft.planning.formats import formats
from stagecraft.planning.hardware import Efficiencies, Gpu, efficiencies
from stagecraft.planning.layout import Layout, Workload
from stagecraft.planning.step import Kernels, Roofline, training_step

SIZES = {"small": 128, "medium": 256, "large": 512}
WORK = Workload(length=512, batch=4)

# Passes of PyTorch's eager operators, each reading and writing whole tensors.
EAGER = Kernels(
    norm=10.0,        # rms_norm: square, mean, scale, weight; residual addition
    activation=3.0,   # relu, square and probability, each read and written: 6 passes, over input and output together
    convolution=27.0, # four taps, each multiplied, padded and added; silu
    scan=8.0,         # decay: difference, mask, exponential; scores times decay; the product reads them
    scan_inner=24.0,  # skip, time step, layout copies, decay to the end of a chunk, what enters it, silu of the gate
    loss=12.0,        # maximum, difference, exponential, sum, quotient; gradient in as many again
    optimizer=1.2,    # one, and the norm of the gradients
)


@dataclass(frozen=True)
class Result:
    """Seconds of a step of one size."""

    size: str
    parameters: int
    measured: float
    predicted: float
    rate: float
    bandwidth: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted / self.measured - 1


def architecture(hidden: int) -> Architecture:
    """The laptop's layer pattern at a width."""
    return Architecture(
        hybrid_override_pattern="M*EM*E", hidden_size=hidden, vocab_size=2048, num_attention_heads=hidden // 32, num_key_value_heads=2,
        head_dim=32, mamba_num_heads=hidden // 16, mamba_head_dim=32, ssm_state_size=32, n_groups=1, chunk_size=64, n_routed_experts=16,
        num_experts_per_tok=4, moe_intermediate_size=hidden, moe_latent_size=hidden // 2, moe_shared_expert_intermediate_size=2 * hidden)


def cpu_seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    started = time.process_time()
    call()
    return time.process_time() - started


class Machine:
    """Microbenchmarks at the sizes of one model; every `measure` adds one sample of each rate."""

    def __init__(self, model: Model, work: Workload):
        self.tokens, self.samples = work.tokens, {"gemm": [], "memory": [], "attention": [], "scan": []}
        products = {product for layer in model.layers for product in layer.products} | {model.head}
        self.products = [self._operands(product) for product in sorted(products, key=str)]
        size = self.tokens * model.hidden * 2
        count = max(2, (64 << 20) // (4 * size))  # more than the caches hold, as a step's activations are
        self.inputs = [torch.randn(size) for _ in range(count)]
        cores = [layer.core for layer in model.layers]
        self.attention = next(core for core in cores if isinstance(core, Attention))
        self.scan = next(core for core in cores if isinstance(core, Scan))
        self.qkv = [torch.randn(work.batch, heads, work.length, self.attention.dim, requires_grad=True)
                    for heads in (self.attention.heads, self.attention.kv_heads, self.attention.kv_heads)]
        self.flops = work.tokens * attention_flops(self.attention, self.attention.mean_seen(work.length))
        chunks = self.tokens // self.scan.chunk * self.scan.heads
        self.scores = torch.randn(chunks, self.scan.chunk, self.scan.chunk)
        self.values = torch.randn(chunks, self.scan.chunk, self.scan.dim)

    def _operands(self, product: Product) -> tuple[int, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
        rows = self.tokens * product.used // product.copies
        shapes = ((rows, product.inputs), (product.outputs, product.inputs), (rows, product.outputs))
        sets = max(product.copies, 2)
        return product.copies, [tuple(torch.randn(shape) for shape in shapes) for _ in range(sets)]

    def measure(self) -> None:
        """One sample of every rate: the three products of each linear map, forward, and both gradients."""
        flops = seconds = 0.0
        for copies, sets in self.products:
            for x, w, y in sets:
                share = copies / len(sets)
                flops += share * 6 * x.shape[0] * w.numel()
                seconds += share * cpu_seconds(lambda x=x, w=w, y=y: (x @ w.t(), y @ w, y.t() @ x))
        self.samples["gemm"].append(flops / seconds)
        results: list[torch.Tensor] = []  # kept until all are there, as a forward pass keeps its activations
        spent = cpu_seconds(lambda: results.extend(x * 1.5 for x in self.inputs))
        self.samples["memory"].append(sum(2 * x.numel() * x.element_size() for x in results) / spent)
        spent = cpu_seconds(lambda: F.scaled_dot_product_attention(*self.qkv, is_causal=True, enable_gqa=True).sum().backward())
        self.samples["attention"].append(3.5 * self.flops / spent)  # in the units of the planner: forward 1, backward 2.5
        spent = cpu_seconds(lambda: self.scores @ self.values)
        self.samples["scan"].append(2 * self.scores.numel() * self.scan.dim / spent)

    def rates(self) -> dict[str, float]:
        """Medians."""
        return {name: statistics.median(values) for name, values in self.samples.items()}


def predict(model: Model, rates: dict[str, float]) -> float:
    """Seconds of one step."""
    peak = max(rates["gemm"], rates["attention"], rates["scan"])  # no share of it is above 1, whichever is quickest
    gpu = Gpu(name="CPU", memory=1e12, bandwidth=rates["memory"], peak={"float32": peak}, nvlink=1.0, domain=1, network=1.0, price=0.0)
    stated = efficiencies().ideal()
    shares: Efficiencies = replace(stated, gemm=dict.fromkeys(stated.gemm, rates["gemm"] / peak), attention=rates["attention"] / peak,
                                   scan=rates["scan"] / peak)
    return training_step(model, WORK, Layout(micro=WORK.batch), Roofline(gpu, shares, EAGER), formats("training", "float32")).seconds


def run(size: str, steps: int) -> Result:
    """Train a few steps and measure the machine between them."""
    shapes = architecture(SIZES[size])
    model = nemotron_h(shapes)
    torch.set_num_threads(1)
    parallel.initialize(seed=1)
    trainer = Trainer(shapes, Optimization(lr=1e-4, steps=1000), max_sequence_length=WORK.length, precision="bf16", mtp_depths=0)
    tokens = torch.randint(0, shapes.vocab_size, (WORK.batch, WORK.length), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, tokens, torch.ones(WORK.batch, WORK.length))
    machine = Machine(model, WORK)
    trainer.step([batch])
    machine.measure()
    machine.samples = {name: [] for name in machine.samples}
    measured = []
    for _ in range(steps):
        measured.append(cpu_seconds(lambda: trainer.step([batch])))
        machine.measure()
    parallel.shutdown()
    rates = machine.rates()
    parameters = sum(parameter.numel() for parameter in trainer.module.parameters())
    return Result(size, parameters, statistics.median(measured), predict(model, rates), rates["gemm"], rates["memory"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    table = Table("size", "parameters", "GFLOP/s", "GB/s", "predicted s", "measured s", "error",
                  title=f"one step of {WORK.tokens:,} tokens, FP32, one thread")
    for size in SIZES:
        result = run(size, options.steps)
        table.add_row(size, f"{result.parameters:,}", f"{result.rate / 1e9:.0f}", f"{result.bandwidth / 1e9:.1f}",
                      f"{result.predicted:.2f}", f"{result.measured:.2f}", f"{result.error:+.0%}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
