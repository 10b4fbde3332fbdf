"""Curate: from raw text to tokens, a tokenizer, held-out text and verifiable tasks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from components.curate.blend import group_of
from components.curate.catalogue import Catalogue
from components.curate.corpus import HELDOUT, TokenFile, write_blends, write_tokens
from components.curate.evaluation import evaluation_texts
from components.curate.funnel import Funnel
from components.curate.params import Params
from components.curate.plots import funnel_figure
from components.curate.reading.listing import list_files
from components.curate.report import build_report, render
from components.curate.rulebook import rulebook
from components.curate.shards.plan import Shard, draw_sample, plan_shards
from components.curate.shards.run import run_shards
from components.curate.synthetic import SOURCE as SYNTHETIC
from components.curate.synthetic.make import make
from components.curate.tiers.classifier import train
from components.curate.tiers.seeds import default_seeds, read_seeds
from components.curate.vocabulary import make_tokenizer
from stagecraft.contract.code import code_digest
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import digest_of, sha256, write_atomic, write_json
from stagecraft.contract.runlog import RunLog
from stagecraft.data.decontamination import EvaluationIndex
from stagecraft.data.language import LanguageId
from stagecraft.data.lineage import DUPLICATES_FILE
from stagecraft.data.tasks import assert_disjoint, draw_splits, write_rows
from stagecraft.data.tokenizer import save_tokenizer

__all__ = ["Params", "main"]

_SHARD_PARAMS = ("max_document_bytes", "languages", "min_language_probability", "quality", "rules")
Tasks = dict[str, list[dict[str, Any]]]

_LATER_STEPS = 7  # after the shards: deduplication, held-out text, tokenizer, three kinds of token files, report


def main(params: Params, inputs: dict[str, Path], outputs: dict[str, Path], log: RunLog) -> dict[str, float]:
    """Build the corpus artifact.

    Args:
        inputs: none; the text comes from `params.input`.
        outputs: `corpus`, a directory: tokenizer/, tokens/, blend.json, heldout/text.jsonl, tasks/*.jsonl, report.json, report.html.

    Returns:
        documents, bytes, tokens, held-out sizes, bytes per token, documents removed by each step, rows of tasks, synthetic documents.

    Raises:
        UserError: no readable input, nothing left after the rules, too little text for the vocabulary, a weight for nothing, an
            endpoint that cannot be used, a language that cannot be told apart.
    """
    refuse_unknown_languages(params.languages)
    corpus = outputs["corpus"]
    results = log.cache
    tasks = draw_tasks(params)
    seeds = default_seeds() if params.seeds == "default" else read_seeds(Path(params.seeds))
    train(seeds).save(results / "classifier.npz")
    prompts = evaluation_texts(tasks, params.benchmarks)
    for name in (name for name, texts in prompts.items() if not texts):
        log.note(f"no text of {name} is kept out of training: none of its strings has the eight words that tell it from any other text")
    evaluation = EvaluationIndex.build(prompts)
    evaluation.save(results / "evaluation.npz")

    files = list_files(params.input)
    synthetic = make(params.synthetic, params.seed, evaluation, results, log)
    join(tasks, synthetic.rows, params.seed)
    for split, rows in tasks.items():
        write_rows(corpus / "tasks" / f"{split}.jsonl", rows)
    sample = [*draw_sample(files, params.sample_bytes), *synthetic.files]
    shards = plan_shards(sample, params.shards, shard_basis(params, results))
    with log.bar("curating", total=len(shards) + _LATER_STEPS) as bar:
        worked = run_shards(shards, results, params, log.work / "datatrove", lambda done: bar.advance(done - bar.done))
        log.note(f"{worked} of {len(shards)} shards worked through, the others' results were there")
        catalogue, funnel = gather(shards, results, params, log)
        catalogue.write_duplicates(corpus / DUPLICATES_FILE)
        bar.advance()
        # Synthetic documents share their templates: one held out would be judged by those trained on.
        heldout = catalogue.heldout(params.heldout_share) & (catalogue.column("source") != SYNTHETIC)
        if (heldout == catalogue.kept).all():
            heldout[:] = False
        tally, funnel.overlaps = catalogue.keep_apart(heldout, params.quality.min_characters, params.memory_bytes, params.workers)
        funnel.steps.append(tally)
        heldout &= catalogue.kept
        if not heldout.any():
            raise UserError(f"{len(catalogue)} documents are too few to hold out a share of {params.heldout_share} that share no text with "
                            "the rest", where="curate.heldout_share", mend="give more documents or another share")
        bar.advance()
        tokenizer = make_tokenizer(catalogue, catalogue.kept & ~heldout, tasks["sft"], params)
        save_tokenizer(tokenizer, corpus / "tokenizer", params.max_length)
        bar.advance()
        token_files = write_tokens(corpus, tokenizer, catalogue, heldout, params.blend.long_min_characters, bar.advance)
        phases = write_blends(corpus, token_files, params.blend)
        for name, portions in phases.items():
            if (most := max(portion.epochs for portion in portions.values())) > params.blend.max_epochs * (1 + 1e-9):
                log.note(f"{name} repeats text {most:.1f} times, above blend.max_epochs {params.blend.max_epochs:g}: there is too little")
        metrics = {**sizes(token_files, tokenizer.get_vocab_size()), **funnel.metrics(),
                   **{f"tasks_{name}": len(rows) for name, rows in tasks.items()}, **synthetic.metrics(catalogue)}
        rules = rulebook(params, {name: len(texts) for name, texts in prompts.items()})
        report = build_report(params, rules, [*files, *synthetic.files], sample, funnel, catalogue, token_files, phases, tasks, seeds,
                              metrics)
        report["synthetic"] = synthetic.report(catalogue)
        write_json(corpus / "report.json", report)
        for directory in (corpus, log.work):
            write_atomic(directory / "report.html", render(report))
        log.attach(log.work / "report.html")
        log.figure("funnel", funnel_figure(report))
        bar.advance()
    return metrics


def refuse_unknown_languages(wanted: list[str]) -> None:
    """Refuse a language that no text would be found to be in: every text would be removed.

    Raises:
        UserError: names it.
    """
    if wanted and (unknown := sorted(set(wanted) - (known := LanguageId().known()))):
        raise UserError(f"{unknown[0]!r} is none of the {len(known)} languages that are told apart", where="curate.languages",
                        mend="use ISO 639 codes, such as en or de; [] keeps all")


def draw_tasks(params: Params) -> Tasks:
    """Draw the verifiable tasks from their templates: set -> rows."""
    return draw_splits(params.tasks.counts, params.tasks.flawed, params.seed, params.tasks.sft_weights)


def join(tasks: Tasks, more: Tasks, seed: int) -> None:
    """Shuffle further rows into the sets that they are for; a set that gets none keeps its order.

    Raises:
        UserError: a prompt occurs twice.
    """
    for split, rows in more.items():
        if rows:
            tasks[split] += rows
            Random(f"{seed}/joined/{split}").shuffle(tasks[split])
    assert_disjoint(tasks)


def shard_basis(params: Params, results: Path) -> str:
    """Hex digest of all that a shard's result depends on besides its files."""
    values = asdict(params)
    return digest_of([{name: values[name] for name in _SHARD_PARAMS}, sha256(results / "evaluation.npz"),
                      sha256(results / "classifier.npz"), code_digest("curate")])


def gather(shards: list[Shard], results: Path, params: Params, log: RunLog) -> tuple[Catalogue, Funnel]:
    """Put the shards' results together and deduplicate across them.

    Raises:
        UserError: nothing could be read, or nothing is left; it names the rule that removed most.
    """
    directories = [results / shard.key for shard in shards]
    funnel = Funnel.of(directories)
    for name, why in funnel.broken.items():
        log.note(f"left out {name}: {why}")
    funnel.assert_left(params.input)
    catalogue = Catalogue(directories)
    tallies, funnel.clusters = catalogue.deduplicate(params.near_duplicate_similarity, params.memory_bytes)
    funnel.steps += tallies
    if params.substring_min_tokens:
        funnel.steps.append(catalogue.cut_repeated(
            params.substring_min_tokens, params.quality.min_characters, params.memory_bytes, log.work))
        funnel.assert_left(params.input)
    return catalogue, funnel


def sizes(files: dict[str, TokenFile], vocab_size: int) -> dict[str, float]:
    """What the corpus came to; `bytes_per_token` is that of held-out text."""
    heldout = files[HELDOUT]
    train = [file for name, file in files.items() if group_of(name)]
    return {
        "documents": sum(file.counted[0] for file in train), "bytes": sum(file.bytes for file in train),
        "tokens": sum(file.counted[1] for file in train),
        "heldout_documents": heldout.counted[0], "heldout_bytes": heldout.bytes, "heldout_tokens": heldout.counted[1],
        "bytes_per_token": round(heldout.bytes / (heldout.counted[1] - heldout.counted[0]), 4), "vocab_size": vocab_size,
    }
