"""What the second stage of fine-tuning is for: tasks with long input and short output, in one mix with tasks of long output.

    python -m benchmarks.sft PROJECT [--steps 120] [--second 60] [--seeds 3] [--svg docs/figures/sft_stages.svg]

PROJECT has the artifacts `corpus` and `base`. The sft section of the profile in force (params.yaml), its schedule shortened to `--steps`,
in one process, on as many conversations of each of five families. Of two the input is long and the output a few tokens: `needle`,
`policy`. Of three the output is long: `sql`, `warehouse` (demonstrations of the environments of these names, calls of tools included) and
`text`, which is to be gone on with, a piece of the corpus: like most long answers it can never be foretold to the word, so its loss
stays. A mean over tokens gives the short outputs little weight. Every seed draws conversations of its own and fine-tunes the base model
twice on the same packs in the same order: with the mean over tokens to the end, and with the mean over conversations in the last
`--second` steps.

Held-out conversations are judged by teacher forcing: the loss per token of the assistant (nats), mean over conversations, and the share
of them in which the likeliest token is the right one everywhere, so that greedy decoding would say just this. Differences are of pairs
with the same seed; ± is the standard error over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import stagecraft.megatron_cpu  # noqa: F401

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.estimates import mean_and_error, shown
from components.pretrain.rows import TokenFiles
from components.sft.params import Data, Modes, Params, Stage
from components.sft.train import Conversation, train
from stagecraft.checkpoint.canonical import read_checkpoint
from stagecraft.contract.errors import exit_on_user_error
from stagecraft.contract.figures import write_svg
from stagecraft.contract.params import load
from stagecraft.data.conversations import encode_conversation
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.engine import parallel
from stagecraft.engine.layout import Layout
from stagecraft.engine.packs import packed_batch
from stagecraft.engine.trainer import Optimization, Trainer
from stagecraft.environments.demonstrations import demonstrations
from stagecraft.model.config import Architecture

FAMILIES = ("needle", "policy", "sql", "warehouse", "text")
STAGES = {"token mean": "tokens", "then conversation mean": "conversations"}  # whose mean the loss is in the last `--second` steps
LONGEST = 512  # tokens of a conversation
GIVEN, CONTINUED = 48, 192  # tokens of a text that the prompt has, and that the answer has


@dataclass
class Figures:
    """One model: loss per token and share said exactly, by family; tokens that it does not say and that it says, means over held-out
    conversations."""

    loss: dict[str, float]
    exact: dict[str, float]
    lengths: dict[str, tuple[float, float]]


def draw(tokenizer: Any, family: str, count: int, seed: int | str, apart: Sequence[dict] = ()) -> list[dict]:
    """`count` demonstrations that fit, none of them a repetition of another or of one in `apart`.

    Raises:
        ValueError: the environment has not as many.
    """
    seen, rows = {json.dumps(row["messages"]) for row in apart}, []
    for row in demonstrations(family, 10 * count, seed):
        key = json.dumps(row["messages"])
        if key not in seen and len(encode_conversation(tokenizer, row)[0]) <= LONGEST:
            seen.add(key)
            rows.append(row)
        if len(rows) == count:
            return rows
    raise ValueError(f"{family}: {len(rows)} different demonstrations of at most {LONGEST} tokens, {count} are needed")


def texts(tokenizer: Any, corpus: Path, blend: str, count: int, seed: int, cache: Path) -> list[dict]:
    """`count` pieces of a blend of the corpus: the beginning asks, the rest answers."""
    rows = TokenFiles(corpus, cache).open(blend, rows=count, length=GIVEN + CONTINUED, seed=seed)
    pieces = [[int(token) for token in rows[index]["tokens"]] for index in range(count)]
    said = [[tokenizer.decode(part, skip_special_tokens=True) for part in (piece[:GIVEN], piece[GIVEN:])] for piece in pieces]
    return [{"messages": [{"role": "user", "content": f"Go on:\n{given}"}, {"role": "assistant", "content": more}]} for given, more in said]


def measure(architecture: Architecture, weights: dict[str, Tensor], heldout: dict[str, list[Conversation]]) -> Figures:
    """The figures of one model."""
    parallel.initialize(0)
    model = Trainer(architecture, Optimization(lr=1e-3, steps=1), max_sequence_length=LONGEST, weights=weights).module.eval()
    found = Figures({}, {}, {})
    for family, conversations in heldout.items():
        losses, exact = [], []
        for conversation in conversations:
            batch = packed_batch([conversation])
            spoken = batch.loss_mask[0].bool()
            with torch.no_grad():
                log_p = model(batch.tokens, torch.zeros_like(batch.tokens), None, packed_seq_params=batch.packed)[0, spoken].log_softmax(-1)
            labels = batch.labels[0, spoken]
            losses.append(-float(log_p.gather(1, labels[:, None]).mean()))
            exact.append(float((log_p.argmax(1) == labels).all()))
        answers = [sum(mask) for _, mask in conversations]
        found.loss[family], found.exact[family] = fmean(losses), fmean(exact)
        found.lengths[family] = (fmean(len(ids) for ids, _ in conversations) - fmean(answers), fmean(answers))
    parallel.shutdown()
    return found


def compare(params: Params, project: Path, rows: int, heldout_rows: int) -> Figures:
    """One model of one seed, fine-tuned and measured."""
    corpus = project / "artifacts" / "corpus"
    tokenizer = load_tokenizer(corpus / "tokenizer")
    architecture, weights = read_checkpoint(project / "artifacts" / "base")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        heldout = {family: draw(tokenizer, family, heldout_rows, "heldout") for family in FAMILIES[:-1]}
        mix = {family: draw(tokenizer, family, rows, params.seed, own) for family, own in heldout.items()}
        heldout["text"] = texts(tokenizer, corpus, "heldout", heldout_rows, 0, work)
        mix["text"] = texts(tokenizer, corpus, "phase2", rows, params.seed, work)
        (work / "mix.jsonl").write_text("".join(json.dumps(row) + "\n" for own in mix.values() for row in own))
        params = replace(params, data=Data(tasks=False, files=[str(work / "mix.jsonl")], bad_rows="fail"))
        trained = train(params, architecture, weights, corpus, work, None).weights
    return measure(architecture, trained, {family: [encode_conversation(tokenizer, row) for row in own] for family, own in heldout.items()})


def table_of(found: dict[str, list[Figures]], title: str) -> Table:
    """Loss and exact share of both models, and their differences, by family."""
    table = Table(title=title)
    for column in ("family", "tokens in", "out", *(f"{name}, {stage}" for name in ("loss", "exact") for stage in (*STAGES, "difference"))):
        table.add_column(column, justify="left" if column == "family" else "right")
    first, second = found.values()
    for family in FAMILIES:
        cells = []
        for name, form in (("loss", ".3f"), ("exact", ".1%")):
            before, after = ([getattr(each, name)[family] for each in own] for own in (first, second))
            cells += [shown(before, form), shown(after, form), shown([b - a for a, b in zip(before, after)], f"+{form}")]
        table.add_row(family, *(f"{length:.0f}" for length in first[0].lengths[family]), *cells)
    return table


def figure_of(found: dict[str, list[Figures]]) -> Figure:
    """What the second stage does to the held-out loss, a bar for each family; the lines are standard errors."""
    first, second = found.values()
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    spread = [mean_and_error([after.loss[family] - before.loss[family] for before, after in zip(first, second)]) for family in FAMILIES]
    names = [f"{family}\n{length[0]:.0f} in\n{length[1]:.0f} out" for family in FAMILIES for length in [first[0].lengths[family]]]
    axes.bar(names, [mean for mean, _ in spread], yerr=[error for _, error in spread], capsize=3,
             color=["C0" if mean < 0 else "C1" for mean, _ in spread])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("change of held-out loss\n(nats per answer token)")
    return figure


def main() -> int:
    """Fine-tune, measure, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--second", type=int, default=60, help="the last of the steps, in which the second model's loss is the mean over "
                                                               "conversations")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=800, help="conversations of each family")
    parser.add_argument("--heldout", type=int, default=100, help="conversations of each family")
    parser.add_argument("--processes", type=int, default=2, help="models trained at a time")
    parser.add_argument("--svg", type=Path, help="where to write the figure")
    args = parser.parse_args()
    profile = load(Params, "sft")
    params = replace(profile, steps=args.steps, warmup_steps=args.steps * profile.warmup_steps // profile.steps,
                     decay_steps=args.steps * profile.decay_steps // profile.steps, processes=1,
                     layout=Layout(tensor=1, pipeline=1, context=1, expert=1),
                     modes=Modes(off=0.0, low=0.0, cut=0.0), checkpoint_every=args.steps)
    jobs = {(seed, stage): replace(params, seed=seed, later_stages=[Stage(
        steps=args.second, loss_mean=mean, pack_tokens=params.pack_tokens, packs_per_step=params.packs_per_step, modes=params.modes)])
            for seed in range(args.seeds) for stage, mean in STAGES.items()}
    found: dict[str, list[Figures]] = {stage: [] for stage in STAGES}
    console = Console(width=180)
    with get_context("spawn").Pool(args.processes, maxtasksperchild=1) as pool:
        work = partial(compare, project=args.project, rows=args.rows, heldout_rows=args.heldout)
        for (seed, stage), figures in zip(jobs, pool.imap(work, jobs.values())):
            found[stage].append(figures)
            console.print(f"seed {seed}, {stage}: " + ", ".join(f"{family} {loss:.3f}" for family, loss in figures.loss.items()))
    console.print(table_of(found, f"{args.steps} steps, the last {args.second} of them in the second stage; {args.heldout} held-out "
                                  f"conversations of each family, {args.seeds} seeds: mean ± standard error"))
    if args.svg:
        write_svg(figure_of(found), args.svg)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
