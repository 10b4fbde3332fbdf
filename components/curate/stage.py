"""Curate: from raw text to tokens, a tokenizer, held-out text and verifiable tasks."""

from __future__ import annotations

from pathlib import Path

from components.curate.corpus import split_heldout, train_on, write_corpus
from components.curate.funnel import Funnel
from components.curate.params import Params
from components.curate.quality import normalise, quality_rules
from components.curate.report import build_report
from components.curate.sources import collect
from stagecraft.contract.files import write_json
from stagecraft.contract.runlog import RunLog
from stagecraft.data.tasks import assert_disjoint, draw_splits, write_rows

__all__ = ["Params", "main"]

STEPS = ("tasks", "reading", "cleaning", "near-duplicates", "tokenizer", "tokens")


def main(params: Params, inputs: dict[str, Path], outputs: dict[str, Path], log: RunLog) -> dict[str, float]:
    """Build the corpus artifact.

    Args:
        inputs: none; the text comes from `params.input`.
        outputs: `corpus`, a directory: tokenizer/, tokens/, blend.json, heldout/text.jsonl, tasks/*.jsonl, report.json.

    Returns:
        documents, bytes, tokens, held-out sizes, bytes per token, documents removed by each step, rows of tasks.

    Raises:
        UserError: no readable input, nothing left after the rules, too little text for the vocabulary.
    """
    corpus = outputs["corpus"]
    with log.bar("curating", total=len(STEPS)) as bar:
        tasks = draw_splits(
            {"sft": params.tasks.sft_rows, "rl": params.tasks.rl_rows, "heldout": params.tasks.heldout_rows},
            params.tasks.flawed, params.seed, params.tasks.sft_weights)
        assert_disjoint(tasks)
        for split, rows in tasks.items():
            write_rows(corpus / "tasks" / f"{split}.jsonl", rows)
        bar.advance()

        collection = collect(params.input, params.sample_bytes)
        for name, why in collection.broken.items():
            log.note(f"left out {name}: {why}")
        bar.advance()

        funnel = Funnel([normalise(document) for document in collection.documents])
        funnel.remove_exact_duplicates()
        funnel.remove_breaking(quality_rules(params.quality))
        funnel.remove_prompts({message["content"] for rows in tasks.values() for row in rows for message in row["messages"]})
        bar.advance()

        funnel.remove_near_duplicates(params.near_duplicate_similarity)
        bar.advance()

        train, heldout = split_heldout(funnel.documents, params.heldout_share)
        tokenizer = train_on(train, tasks["sft"], params.vocab_size, params.tokenizer_bytes)
        bar.advance()

        sizes = write_corpus(corpus, tokenizer, train, heldout, params.max_length)
        bar.advance()

    report = build_report(params, collection, funnel, tokenizer, tasks, sizes)
    write_json(corpus / "report.json", report)
    log.figure("funnel", funnel.figure())
    return {**sizes, **funnel.metrics(), "broken_files": len(collection.broken),
            **{f"tasks_{split}": len(rows) for split, rows in tasks.items()}}
