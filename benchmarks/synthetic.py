"""How quick the synthetic templates are, how varied, and what becomes of their documents, family by family.

    python -m benchmarks.synthetic [--documents 5000]

Columns: items drawn and verified per second of one core; prompts drawn again; documents that fail verification, fall to the bounds of
params.yaml, share text with its held-out or RL prompts, or are near-duplicates of each other by the stage's own measure.
"""

from __future__ import annotations

import argparse
import time
from random import Random

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.curate import profile
from components.curate.dedup.clusters import KEPT, find_duplicates
from components.curate.dedup.signature import signature, text_digest
from components.curate.evaluation import evaluation_texts
from components.curate.params import Params
from components.curate.quality import broken_bound
from components.curate.synthetic.families import FAMILIES
from components.curate.synthetic.verify import failure
from stagecraft.data.decontamination import EvaluationIndex
from stagecraft.data.normalise import normalise
from stagecraft.data.scan import scan
from stagecraft.data.tasks import draw_splits


def measure(family: str, count: int, params: Params, index: EvaluationIndex) -> list[str]:
    """The row of a family."""
    random, started = Random(f"{params.seed}/synthetic/{family}"), time.process_time()
    items = [FAMILIES[family].draw(random) for _ in range(count)]
    failed = sum(failure(item, trusted=True) is not None for item in items)
    seconds = time.process_time() - started
    distinct = {" ".join(item.prompt.lower().split()): normalise(item.document) for item in items}
    scans = {text: scan(text) for text in distinct.values()}
    signatures = np.stack([signature(each.word_hash_lower) for each in scans.values()])
    digests = np.array([text_digest(text) for text in scans], np.uint64)
    found = find_duplicates(np.arange(len(scans)).astype(np.uint64), digests, [signatures], params.near_duplicate_similarity,
                            params.memory_bytes)
    bounds = sum(broken_bound(text, params.quality) is not None for text in scans)
    shared = sum(bool(index.matches(text, each)) for text, each in scans.items())
    return [family, f"{count / seconds:,.0f}", *(f"{value:,}" for value in (
        count - len(distinct), failed, bounds, shared, int((found.kind != KEPT).sum())))]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=5000, help="per family (default: 5000)")
    options = parser.parse_args()
    params = profile()
    tasks = draw_splits(params.tasks.counts, params.tasks.flawed, params.seed, params.tasks.sft_weights)
    index = EvaluationIndex.build(evaluation_texts(tasks, ""))
    title = f"{options.documents:,} items per family"
    table = Table("family", "items/s", "repeated", "fail", "bounds", "shared", "near", title=title)
    for family in FAMILIES:
        table.add_row(*measure(family, options.documents, params, index))
    Console().print(table)


if __name__ == "__main__":
    main()
