"""The two claims of the architecture, in small: hybrid against attention alone, LatentMoE against a plain mixture of experts.

    python -m benchmarks.architectures [--corpus artifacts/corpus] [--steps 300] [--seeds 3] [--rounds 3] [--svg FILE]

Three base models of the pretrain section of the profile in force, its schedule shortened to `--steps`, unquantised:

  hybrid, LatentMoE      the profile's layers; of its experts and of those a token passes, hidden / latent times as many, as LatentMoE
                         spends what it saves (arXiv 2604.12374, section 2.1)
  attention, LatentMoE   each Mamba-2 layer replaced by as many attention layers as come nearest to its parameters
  hybrid, plain MoE      the profile's experts at full width: the same parameters and products per token, latent projections apart

All see the same rows, seed by seed; what is compared is held-out bits per byte, paired by seed. Then vLLM answers with the models of the
first seed, one process for each, in turn, `--rounds` times: `--batch` sequences of one length, the time of prefilling taken off. Rates are
per CPU second of one thread, so that other work on the machine counts little; intervals are Student's over seeds and rounds, those of
ratios on the scale of logarithms.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.schedules import shortened
from components.evaluate.statistics import geometric, t_interval
from components.pretrain.params import Params
from stagecraft.contract.errors import exit_on_user_error
from stagecraft.contract.figures import write_svg
from stagecraft.contract.params import load
from stagecraft.model.config import Architecture
from stagecraft.planning.architecture import nemotron_h

BASE = "hybrid, LatentMoE"
CONFIDENCE = 0.95
Rates = dict[str, list[list[float]]]  # variant -> for each length its rounds


def variants(profile: Architecture, longest: int) -> dict[str, Architecture]:
    """The three architectures; none has positional embeddings, so `longest` is a number in their configuration and no more."""
    profile = replace(profile, max_position_embeddings=max(longest, profile.max_position_embeddings))
    layer = {letter: nemotron_h(replace(profile, hybrid_override_pattern=letter, num_nextn_predict_layers=0)).layers[0] for letter in "M*"}
    attention = "*" * round(layer["M"].active / layer["*"].active)
    saved = profile.hidden_size // profile.moe_latent_size
    latent = replace(profile, n_routed_experts=saved * profile.n_routed_experts, num_experts_per_tok=saved * profile.num_experts_per_tok)
    return {
        BASE: latent,
        "attention, LatentMoE": replace(latent, hybrid_override_pattern=profile.hybrid_override_pattern.replace("M", attention)),
        "hybrid, plain MoE": replace(profile, moe_latent_size=None),
    }


def sizes(architecture: Architecture) -> tuple[int, int, int, int]:
    """Parameters, of them passed by a token (tables aside), bytes of cache per token, bytes of state per sequence (float32)."""
    model = nemotron_h(architecture)
    held = sum(layer.vectors + sum(product.held for product in layer.products) for layer in (*model.layers, *model.mtp))
    a, count = architecture, architecture.hybrid_override_pattern.count
    cache = 4 * count("*") * 2 * a.num_key_value_heads * a.head_dim
    inner = a.mamba_num_heads * a.mamba_head_dim
    state = 4 * count("M") * (inner * a.ssm_state_size + (inner + 2 * a.n_groups * a.ssm_state_size) * (a.conv_kernel - 1))
    return held + 2 * model.embedding, sum(layer.active for layer in model.layers), cache, state


def train(job: tuple[str, Params, Path], corpus: Path) -> tuple[str, int, float]:
    """One model of one seed, exported; its held-out bits per byte."""
    name, params, out = job
    from components.pretrain.stage import bytes_per_token
    from components.pretrain.train import train as pretrain
    from stagecraft.checkpoint.canonical import write_checkpoint

    with tempfile.TemporaryDirectory() as work:
        result = pretrain(params, corpus, Path(work), None)
    write_checkpoint(out, params.architecture, result.weights.items(), corpus / "tokenizer")
    return name, params.seed, result.heldout_loss / math.log(2) / bytes_per_token(corpus)


def decode(model: Path, lengths: Sequence[int], batch: int, tokens: int) -> list[float]:
    """Tokens per CPU second after prompts of each length, in this process."""
    import random

    from stagecraft.inference.engine import Engine

    rates = []
    with Engine(model, max_model_len=max(lengths) + tokens, max_num_seqs=batch) as engine:
        for length in lengths:
            draw = random.Random(length)
            prompts = [[draw.randrange(10, 1000) for _ in range(length)] for _ in range(batch)]
            engine.generate(prompts, temperature=0.0, max_tokens=2)  # kernels are made, memory is touched
            spent = []
            for count in (1, tokens):
                started = time.process_time()
                engine.generate(prompts, temperature=0.0, max_tokens=count)
                spent.append(time.process_time() - started)
            rates.append(batch * (tokens - 1) / (spent[1] - spent[0]))
    return rates


def interval(values: Sequence[float], shown: str) -> str:
    """Mean with Student's interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:{shown}}"
    low, high = t_interval(values, CONFIDENCE)
    return f"{mean:{shown}} [{low:{shown}}, {high:{shown}}]"


def ratio(values: Sequence[float]) -> str:
    """Geometric mean of ratios with the interval of their logarithms."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    estimate, (low, high) = geometric(values, CONFIDENCE)
    return f"{estimate.value:.2f} [{low:.2f}, {high:.2f}]"


def table_of(architectures: dict[str, Architecture], bits: dict[str, list[float]], rates: Rates, lengths: Sequence[int]) -> Table:
    """Sizes, held-out bits per byte and decoding rates, each with what it is against the first."""
    table = Table("", *architectures)

    def row(label: str, cells: Sequence[str]) -> None:
        table.add_row(label, *cells)

    counted = {name: sizes(architecture) for name, architecture in architectures.items()}
    row("layers", [architecture.hybrid_override_pattern for architecture in architectures.values()])
    row("experts, of them passed by a token", [f"{a.n_routed_experts}, {a.num_experts_per_tok}" for a in architectures.values()])
    for index, label in enumerate(("parameters", "passed by a token, tables aside", "cache per token, bytes", "state per sequence, bytes")):
        row(label, [f"{counted[name][index]:,}" for name in architectures])
    table.add_section()
    row("held-out bits per byte", [interval(bits[name], ".4f") for name in architectures])
    row("  minus the first, by seed",
        ["" if name == BASE else interval([a - b for a, b in zip(bits[name], bits[BASE])], "+.4f") for name in architectures])
    for index, length in enumerate(lengths):
        table.add_section()
        row(f"tokens/CPU s after {length}", [interval(rates[name][index], ".0f") for name in architectures])
        ratios = {name: [a / b for a, b in zip(rates[BASE][index], rates[name][index])] for name in architectures}
        row("  the first's, times", ["" if name == BASE else ratio(ratios[name]) for name in architectures])
    return table


def figure_of(bits: dict[str, list[float]], rates: Rates, lengths: Sequence[int]) -> Figure:
    """Decoding rate by context to the left; bits per byte against the rate at the longest context to the right."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, marker in zip(bits, "osD"):
        means = [statistics.fmean(rounds) for rounds in rates[name]]
        line, = left.plot(lengths, means, marker=marker, label=name)
        low, high = t_interval(bits[name], CONFIDENCE) if len(bits[name]) > 1 else (bits[name][0],) * 2
        mean = statistics.fmean(bits[name])
        right.errorbar(means[-1], mean, yerr=[[mean - low], [high - mean]], fmt=marker, color=line.get_color(), capsize=3)
    left.set(xlabel="tokens of context", ylabel="tokens per CPU second", xscale="log", ylim=(0, None))
    left.set_xticks(lengths, [str(length) for length in lengths])
    left.minorticks_off()
    right.set(xlabel=f"tokens per CPU second after {lengths[-1]} tokens", ylabel="held-out bits per byte")
    figure.legend(loc="outside upper center", ncols=len(bits), frameon=False)
    return figure


def main() -> int:
    """Train, decode, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("artifacts/corpus"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 1024, 4096], help="tokens of context")
    parser.add_argument("--batch", type=int, default=8, help="sequences decoded at a time")
    parser.add_argument("--tokens", type=int, default=64, help="of every answer")
    parser.add_argument("--processes", type=int, default=1, help="models trained at a time")
    parser.add_argument("--svg", type=Path, help="where to write the figure")
    parser.add_argument("--decode", type=Path, help=argparse.SUPPRESS)  # the child that holds the engine
    options = parser.parse_args()
    if min(options.steps, options.seeds, options.rounds, options.batch, options.processes, *options.lengths) < 1 or options.tokens < 2:
        parser.error("steps, seeds, rounds, lengths, sequences and processes are 1 or more, tokens of an answer 2 or more")
    if options.decode:
        print(json.dumps(decode(options.decode, options.lengths, options.batch, options.tokens)))
        return 0
    profile = load(Params, "pretrain")
    short = replace(shortened(profile, options.steps), precision="bf16", diagnose_every=0)
    architectures = variants(profile.architecture, max(options.lengths) + options.tokens)
    console = Console(width=140)
    bits: dict[str, list[float]] = {name: [] for name in architectures}
    rates: Rates = {name: [[] for _ in options.lengths] for name in architectures}
    with tempfile.TemporaryDirectory() as scratch:
        place = {name: Path(scratch, str(index)) for index, name in enumerate(architectures)}
        jobs = [(name, replace(short, seed=seed, architecture=architecture), place[name] / str(seed))
                for seed in range(options.seeds) for name, architecture in architectures.items()]
        with get_context("spawn").Pool(options.processes, maxtasksperchild=1) as pool:
            for name, _, found in track(pool.imap(partial(train, corpus=options.corpus), jobs), "training", len(jobs), console=console):
                bits[name].append(found)
        again = ["--batch", str(options.batch), "--tokens", str(options.tokens), "--lengths", *map(str, options.lengths)]
        for number in track(range(options.rounds * len(architectures)), "decoding", console=console):
            name = list(architectures)[number % len(architectures)]
            command = [sys.executable, "-m", "benchmarks.architectures", "--decode", str(place[name] / "0"), *again]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            for index, rate in enumerate(json.loads(done.stdout.splitlines()[-1])):
                rates[name][index].append(rate)
    tokens = options.steps * profile.global_batch * profile.sequence_length
    console.print(f"{tokens:,} tokens, {options.seeds} seeds; {options.rounds} rounds of {options.batch} sequences; "
                  f"{CONFIDENCE:.0%} intervals")
    console.print(table_of(architectures, bits, rates, options.lengths))
    if options.svg:
        write_svg(figure_of(bits, rates, options.lengths), options.svg)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
