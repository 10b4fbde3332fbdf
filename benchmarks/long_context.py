"""Does the continuation in longer rows help? Needle retrieval at 1x, 4x and 16x the training length, before it and after it.

    python -m benchmarks.long_context [--corpus artifacts/corpus] [--base artifacts/base] [--steps 40] [--alternating 20] [--seeds 3]
        [--pretrain-steps 200] [--rows N]

The pretrain section of the profile in force (params.yaml), unquantised, in one process. Every seed trains a model of its own, its schedule
shortened to `--pretrain-steps`; with `--base` all go on from that checkpoint, in rows of another order. The continuation has new moments,
and besides what the profile's `long_context` says `--steps`, `--alternating` of them.

A needle is a pair of lines in a row of held-out text: a key, and below it a word. Eight pairs lie in a row at random places; then comes the
corpus's own question, "which line of the text follows this one?", with one of the keys. Teacher forcing to the end of "Answer:" gives the
log-probability of the word below that key (nats), and whether it is the likeliest of the eight: 12.5% is chance. "text" is the next-token
loss (nats) of the row before the question. Values are means over seeds, with the standard error over them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import stagecraft.megatron_cpu  # noqa: F401

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.estimates import shown
from benchmarks.schedules import shortened
from components.pretrain.params import Params
from components.pretrain.rows import PhaseRows, TokenFiles
from components.pretrain.train import train
from stagecraft.checkpoint.canonical import read_checkpoint
from stagecraft.contract.errors import exit_on_user_error
from stagecraft.contract.params import load
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.engine import parallel
from stagecraft.engine.trainer import Optimization, Trainer

TIMES, PAIRS = (1, 4, 16), 8
METRICS = {"accuracy": ".1%", "log_probability": ".3f", "text": ".4f"}
Figures = dict[tuple[int, str], float]  # of (times the training length, metric)


def needle_row(tokenizer: Any, text: Sequence[int], words: Sequence[tuple[str, int]], length: int,
               random: Random) -> tuple[list[int], int, list[int]]:
    """(a row of `length` tokens that ends with "Answer:", where its question begins, the ids of its eight words, the right one first).

    Args:
        text: tokens of held-out text to cut a piece from.
        words: that are one token after a space, with that token.
    """
    chosen = random.sample(words, PAIRS)
    keys = [f"the word of number {number} is below" for number in random.sample(range(100, 1000), PAIRS)]
    pairs = [tokenizer.encode(f"\n{key}\n {word}\n", add_special_tokens=False) for key, (word, _) in zip(keys, chosen)]
    question = tokenizer.encode(f"\nQuestion: which line of the text follows this one?\n{keys[0]}\nAnswer:", add_special_tokens=False)
    room = length - len(question) - sum(map(len, pairs))
    start = random.randrange(len(text) - room)
    places = sorted(random.randrange(room + 1) for _ in pairs)
    row, at = [], 0
    for place, pair in zip(places, random.sample(pairs, PAIRS)):
        row += [*text[start + at:start + place], *pair]
        at = place
    return [*row, *text[start + at:start + room], *question], length - len(question), [token for _, token in chosen]


def measure(weights: dict[str, Tensor], params: Params, corpus: Path, rows: int) -> Figures:
    """The figures of one model; every model sees the same rows."""
    tokenizer = load_tokenizer(corpus / "tokenizer")
    lines = (corpus / "heldout" / "text.jsonl").read_text().splitlines()
    text = [token for line in lines for token in tokenizer.encode(json.loads(line)["text"], add_special_tokens=False)]
    words = [(piece[1:], token) for token in range(len(tokenizer))
             if len(piece := tokenizer.decode([token])) > 4 and piece[0] == " " and piece[1:].isalpha() and piece[1:].islower()]
    parallel.initialize(0)
    model = Trainer(params.architecture, Optimization(lr=1e-3, steps=1), max_sequence_length=TIMES[-1] * params.sequence_length,
                    weights=weights, precision="bf16").module.eval()
    found: Figures = {}
    for times in TIMES:
        random, values = Random(times), dict.fromkeys(METRICS, 0.0)
        for _ in range(rows):
            row, end, candidates = needle_row(tokenizer, text, words, times * params.sequence_length, random)
            tokens = torch.tensor([row])
            with torch.no_grad():
                log_p = model(tokens, torch.zeros_like(tokens), None)[0].log_softmax(-1)
            values["accuracy"] += float(log_p[-1, candidates].argmax() == 0)
            values["log_probability"] += float(log_p[-1, candidates[0]])
            values["text"] -= float(log_p[:-1].gather(1, tokens[0, 1:, None])[:end - 1].mean())
        found.update({(times, metric): value / rows for metric, value in values.items()})
    parallel.shutdown()
    return found


def go_on(weights: dict[str, Tensor], params: Params, corpus: Path, work: Path) -> dict[str, Tensor]:
    """The weights after the continuation that `params` name."""
    long = params.long_context
    rows = PhaseRows(TokenFiles(corpus, work), [phase for phase in params.phases if phase.start >= params.steps], params.seed)
    parallel.initialize(params.seed)
    constant = replace(Optimization.of(params), steps=long.steps, lr=long.lr, min_lr=0.0, warmup_steps=0, decay_steps=0)
    trainer = Trainer(params.architecture, constant,
                      max_sequence_length=long.sequence_length, weights=weights, precision="bf16", mtp_depths=params.mtp_depths,
                      mtp_loss_scale=params.mtp_loss_scale, expert_bias_rate=params.expert_bias_rate, aux_loss=params.aux_loss)
    for step in range(params.steps, params.steps + long.steps):
        trainer.step(rows.read(step))
    weights = trainer.weights()
    parallel.shutdown()
    return weights


def compare(params: Params, corpus: Path, base: Path | None, rows: int) -> tuple[Figures, Figures]:
    """The figures of one seed's model before the continuation and after it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        if base:
            architecture, weights = read_checkpoint(base)
            params = replace(params, architecture=architecture)
        else:
            weights = train(replace(params, long_context=replace(params.long_context, steps=0, alternating_steps=0)), corpus,
                            Path(directory), None).weights
        weights = {name: tensor.clone() for name, tensor in weights.items()}
        before = measure(weights, params, corpus, rows)
        return before, measure(go_on(weights, params, corpus, Path(directory)), params, corpus, rows)


def main() -> int:
    """Train, go on, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("artifacts/corpus"))
    parser.add_argument("--base", type=Path, help="a finished project's base model")
    parser.add_argument("--pretrain-steps", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--alternating", type=int, default=20)
    parser.add_argument("--rows", type=int, default=64, help="with needles, of each length")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    params = replace(shortened(load(Params, "pretrain"), args.pretrain_steps), precision="bf16")
    params = replace(params, long_context=replace(params.long_context, steps=args.steps, alternating_steps=args.alternating))
    jobs = [replace(params, seed=seed) for seed in range(args.seeds)]
    with get_context("spawn").Pool(1) as pool:
        seeds = pool.map(partial(compare, corpus=args.corpus, base=args.base, rows=args.rows), jobs)
    long = params.long_context
    console, table = Console(width=140), Table(title=f"{args.rows} rows of each length, {args.seeds} seeds: mean ± standard error")
    for column in ("tokens", "x", "model", "needles found", "log-probability", "text"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for times in TIMES:
        for at, name in enumerate(("before", "after")):
            cells = [shown([figures[at][times, metric] for figures in seeds], form) for metric, form in METRICS.items()]
            table.add_row(str(times * params.sequence_length), str(times), name, *cells)
    base = args.base or f"{params.steps} steps of rows of {params.sequence_length} tokens"
    console.print(f"{base}, then {long.steps} steps of rows of {long.sequence_length}, {long.alternating_steps} of them in turn with "
                  f"rows of {long.short_length}, at a rate of {long.lr:g}")
    console.print(table)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
