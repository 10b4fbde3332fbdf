"""From which size and batch on drafts pay on this CPU, and how fast decoding is against transformers.

    python -m benchmarks.drafts [--widths 1 4] [--depths 1 4 8] [--batches 1 4 16] [--draft-tokens 2] [--rounds 3] [--svg FILE]

Random hybrids with latent experts, the smallest of six layers and 2.7 million parameters, their widths and layers multiplied; the MTP block
of each foresees its model, so that drafts are accepted at a rate that is printed, and is that of a good block by choice (`--share` moves
it: what all layers together add to the residual stream). The block has two layers at any depth. Contenders are vLLM without drafts, vLLM
with them and transformers' `generate`, each a process, asked in turn: greedy tokens after prompts of 32, the
time of prefilling taken off, per CPU second of one thread.

What does not hang on the rate is the last column: what a step with drafts costs in plain steps. Drafts pay where the mean number of tokens
that a step yields is above it, and can never pay where it is above 1 + draft tokens.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from stagecraft.contract.errors import exit_on_user_error
from stagecraft.contract.figures import write_svg
from stagecraft.inference.memory import weight_bytes
from tests.checkpoints import ARCHITECTURE, PATTERN, VOCABULARY
from tests.inference.foresight import foreseeing_checkpoint

PLAIN, DRAFTS, TRANSFORMERS = "vLLM", "vLLM with drafts", "transformers"
PROMPT = 32
SCALED = ("hidden_size", "num_attention_heads", "num_key_value_heads", "mamba_num_heads", "moe_intermediate_size", "moe_latent_size",
          "moe_shared_expert_intermediate_size", "intermediate_size")
# Generates so many tokens after each prompt, and gives the mean number of tokens that a step yielded.
Decode = Callable[[list[list[int]], int], float]


@dataclass
class Cell:
    """One size at one batch: rates by contender, round by round, in tokens per CPU second; the mean length of a step with drafts."""

    width: int
    layers: int
    parameters: int
    batch: int
    rates: dict[str, list[float]]
    length: float = 1.0

    def rate(self, name: str) -> float:
        return statistics.median(self.rates[name])

    @property
    def gain(self) -> float:
        """With drafts over without."""
        return self.rate(DRAFTS) / self.rate(PLAIN)

    @property
    def cost(self) -> float:
        """Of a step with drafts, in plain steps."""
        return self.length / self.gain


def vllm(model: Path, batch: int, longest: int, drafts: int) -> Decode:
    from stagecraft.inference.engine import Engine

    engine = Engine(model, max_model_len=longest, max_num_seqs=batch, draft_tokens=drafts)

    def decode(prompts: list[list[int]], tokens: int) -> float:
        before = engine.draft_statistics()
        engine.generate(prompts, temperature=0.0, max_tokens=tokens)
        after = engine.draft_statistics()
        steps = after[0] - before[0]
        return 1 + sum(b - a for a, b in zip(before[2], after[2])) / steps if steps else 1.0

    return decode


def transformers(model: Path) -> Decode:
    import torch
    from transformers import NemotronHForCausalLM

    torch.set_num_threads(1)
    network = NemotronHForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def decode(prompts: list[list[int]], tokens: int) -> float:
        with torch.no_grad():
            network.generate(torch.tensor(prompts), min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, pad_token_id=0,
                             attention_mask=torch.ones(len(prompts), PROMPT, dtype=torch.long))
        return 1.0

    return decode


def contend(name: str, model: Path, largest: int, tokens: int, drafts: int, turn: Connection) -> None:
    """A contender's process: (tokens per CPU second, mean length of a step) for every batch it is sent; 0 ends it."""
    decode = transformers(model) if name == TRANSFORMERS else vllm(model, largest, PROMPT + tokens, drafts if name == DRAFTS else 0)
    draw = random.Random(0)
    prompts = [[draw.randrange(10, VOCABULARY) for _ in range(PROMPT)] for _ in range(largest)]
    while batch := turn.recv():
        spent = []
        for count in (1, tokens):
            started = time.process_time()
            length = decode(prompts[:batch], count)
            spent.append(time.process_time() - started)
        turn.send((batch * (tokens - 1) / (spent[1] - spent[0]), length))


def race(model: Path, width: int, layers: int, options: argparse.Namespace) -> list[Cell]:
    """All batches of one model, the contenders in turn; the first round warms them up and is thrown away."""
    context = get_context("spawn")
    turns, processes = {}, []
    for name in (PLAIN, DRAFTS, TRANSFORMERS):
        turns[name], end = context.Pipe()
        processes.append(context.Process(target=contend, daemon=True, args=(
            name, model, max(options.batches), options.tokens, options.draft_tokens, end)))
        processes[-1].start()
    parameters = weight_bytes(model, "float32") // 4
    cells = [Cell(width, layers, parameters, batch, {name: [] for name in turns}) for batch in options.batches]
    for number in range(1 + options.rounds):
        for cell in cells:
            for name, turn in turns.items():
                turn.send(cell.batch)
                rate, length = turn.recv()
                if number:
                    cell.rates[name].append(rate)
                if name == DRAFTS:
                    cell.length = length
    for turn in turns.values():
        turn.send(0)
    for process in processes:
        process.join()
    return cells


def table_of(cells: list[Cell]) -> Table:
    """Medians over the rounds."""
    rates = (f"{name}, tokens/CPU s" for name in (PLAIN, DRAFTS, TRANSFORMERS))
    table = Table("parameters", "layers", "batch", *rates, "vLLM / transformers", "drafts / plain", "tokens a step", "cost of a step")
    for cell in cells:
        table.add_row(f"{cell.parameters / 1e6:.1f} M", str(cell.layers), str(cell.batch),
                      *(f"{cell.rate(name):.1f}" for name in cell.rates), f"{cell.rate(PLAIN) / cell.rate(TRANSFORMERS):.2f}",
                      f"{cell.gain:.2f}", f"{cell.length:.2f}", f"{cell.cost:.2f}")
    return table


def figure_of(cells: list[Cell], drafts: int) -> Figure:
    """Over the number of layers, a line per width and batch: gain by drafts; and what a step costs, which the acceptance is not in."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    widths, batches = (list(dict.fromkeys(getattr(cell, name) for cell in cells)) for name in ("width", "batch"))
    for width, style in zip(widths, ("-", "--", ":")):
        for batch, colour in zip(batches, ("C0", "C1", "C2", "C3")):
            own = [cell for cell in cells if (cell.width, cell.batch) == (width, batch)]
            layers = [cell.layers for cell in own]
            left.plot(layers, [cell.gain for cell in own], style, color=colour, marker="o", label=f"batch {batch}, widths {width} x")
            right.plot(layers, [cell.cost for cell in own], style, color=colour, marker="o")
    left.axhline(1.0, color="0.5", linewidth=0.8)
    right.axhline(1.0 + drafts, color="0.5", linewidth=0.8)
    left.set(xlabel="layers", ylabel="tokens per CPU second, with drafts / without", ylim=(0, None))
    right.set(xlabel="layers", ylabel="cost of a step with drafts, in plain steps", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 4], help="multiples of the smallest widths (default: 1 4)")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 4, 8], help="multiples of the fewest layers (default: 1 4 8)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], help="sequences decoded together (default: 1 4 16)")
    parser.add_argument("--draft-tokens", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48, help="decoded after each prompt (default: 48)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.1, help="of what the layers say; less is more foreseeable (default: 0.1)")
    parser.add_argument("--svg", type=Path, help="write a figure")
    options = parser.parse_args()
    cells = []
    for width, depth in product(options.widths, options.depths):
        pattern = depth * PATTERN
        with tempfile.TemporaryDirectory() as scratch:
            model = foreseeing_checkpoint(Path(scratch) / "model", options.share / depth, pattern=pattern,
                                          **{key: width * ARCHITECTURE[key] for key in SCALED})
            cells += race(model, width, len(pattern), options)
        Console(width=140).print(table_of(cells))
    if options.svg:
        write_svg(figure_of(cells, options.draft_tokens), options.svg)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
