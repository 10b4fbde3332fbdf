"""Curation against stock datatrove on the same documents and rules, in turn; and how time and memory grow with the corpus.

    python -m benchmarks.curate compare [--input system+docs] [--bytes 20000000] [--rounds 3]
    python -m benchmarks.curate scale --input DIR [--bytes 50000000 150000000 450000000]

`compare` runs both on one core with the same reader, the Gopher quality and repetition rules, PII and MinHash deduplication.
Stock datatrove has its filters with the tokenizer of our tests (its default, spaCy, is slower); it does neither language
identification, nor decontamination, nor tiers, which ours does besides. Code is left out, for ours has other rules for it.
`scale` runs the stage's shards, deduplication and held-out overlap on samples of growing size, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.utils.hashing import HashConfig
from rich.console import Console
from rich.table import Table

from components.curate.catalogue import Catalogue
from components.curate.categories import is_code
from components.curate.params import Params, QualityParams
from components.curate.quality import broken_bound
from components.curate.reading.formats import read
from components.curate.reading.listing import File, list_files
from components.curate.shards.plan import draw_sample, plan_shards
from components.curate.shards.run import run_shards
from components.curate.shards.store import read_accounts
from components.curate.tiers.classifier import train
from components.curate.tiers.seeds import default_seeds
from stagecraft.contract.params import parse, read_profile
from stagecraft.data.decontamination import EvaluationIndex
from stagecraft.data.normalise import normalise
from tests.curate.test_rules import REGEX

_ANYTHING = QualityParams(min_characters=1, max_characters=10**9, max_line_characters=10**9, min_letter_share=0.0, min_ascii_share=0.0,
                          max_repeated_share=1.0)


def profile() -> Params:
    """The curate section of params.yaml."""
    return parse(Params, read_profile(Path(__file__).parent.parent / "params.yaml")["curate"], "params.yaml: curate")


def ours(files: Sequence[File], params: Params, directory: Path) -> Catalogue:
    """The shards and the deduplication across them."""
    train(default_seeds()).save(directory / "classifier.npz")
    EvaluationIndex.build({"prompts": [f"question number {number}" for number in range(1000)]}).save(directory / "evaluation.npz")
    shards = plan_shards(files, params.shards, "benchmark")
    run_shards(shards, directory, params, directory / "logs", lambda _: None)
    catalogue = Catalogue([directory / shard.key for shard in shards])
    catalogue.deduplicate(params.near_duplicate_similarity, params.memory_bytes)
    return catalogue


class Documents(PipelineStep):
    """The same documents for stock datatrove."""

    type, name = "benchmark", "documents"

    def __init__(self, files: Sequence[File], params: Params):
        super().__init__()
        self.files, self.limit = list(files), params.max_document_bytes

    def run(self, data=None, rank: int = 0, world_size: int = 1):  # noqa: ANN001, ANN201
        """Read, normalise, and leave out what ours never takes: empty texts, and such as hold control tokens."""
        for file in self.files:
            for document in read(file, lambda *_: None, self.limit):
                document.text = normalise(document.text)
                if document.text.strip() and not broken_bound(document.text, _ANYTHING):
                    yield document


class Count(PipelineStep):
    """Remembers which documents came this far."""

    type, name = "benchmark", "count"

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def run(self, data=None, rank: int = 0, world_size: int = 1):  # noqa: ANN001, ANN201
        """Pass everything on."""
        seen = []
        for document in data:
            seen.append(document.id)
            yield document
        self.path.write_text(json.dumps(seen))


def stock(files: Sequence[File], params: Params, directory: Path) -> None:
    """Filters, PII and the four steps of MinHash deduplication as datatrove has them."""
    config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1", precision=32))  # with xxhash 4 its xxhash fails
    bounds = {"max_non_alpha_words_ratio": params.rules.bounds["gopher_min_letter_words"]}
    clean = [Documents(files, params), GopherQualityFilter(language=REGEX, **bounds), GopherRepetitionFilter(language=REGEX)]
    parts = [
        [*clean, Count(directory / "kept.json"), PIIFormatter(), MinhashDedupSignature(str(directory / "signatures"), config, REGEX)],
        [MinhashDedupBuckets(str(directory / "signatures"), str(directory / "buckets"), config=config)],
        [MinhashDedupCluster(str(directory / "buckets"), str(directory / "removed"), config=config)],
        [*clean, MinhashDedupFilter(str(directory / "removed")), Count(directory / "left.json")],
    ]
    for number, part in enumerate(parts):
        tasks = config.num_buckets if number == 1 else 1
        LocalPipelineExecutor(part, tasks=tasks, workers=1, logging_dir=str(directory / f"logs{number}")).run()


def compare(where: str, size: int, rounds: int) -> None:
    """Documents per second of both on one core, and whether they decide alike."""
    base = profile()
    files = [file for file in draw_sample(list_files(where), size) if not is_code({"path": file.name})]
    params = replace(base, workers=1, shards=1, languages=[], quality=_ANYTHING)
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    with tempfile.TemporaryDirectory() as root:
        ours(files[:50], params, _fresh(root, "warm"))
        for turn in range(rounds):
            for name, run in (("stock", stock), ("ours", ours)):
                directory = _fresh(root, f"{name}{turn}")
                started = time.process_time()
                result = run(files, params, directory)
                seconds[name].append(time.process_time() - started)
                if name == "ours":
                    catalogue, accounts = result, read_accounts(result.shards[0])[0]
                else:
                    kept, left = (set(json.loads((directory / f"{part}.json").read_text())) for part in ("kept", "left"))
    documents, size, mine = accounts[0].documents, accounts[0].bytes, set(catalogue.table["id"].to_pylist())
    table = Table("", "documents/s per core", "MB/s per core", "kept by the rules", "left after deduplication")
    for name, survivors in (("stock", (kept, len(left))), ("ours", (mine, len(catalogue)))):
        median = statistics.median(seconds[name])
        table.add_row(name, f"{documents / median:,.0f}", f"{size / median / 1e6:.2f}", f"{len(survivors[0]):,}", f"{survivors[1]:,}")
    Console().print(table)
    ratio = statistics.median(theirs / own for theirs, own in zip(seconds["stock"], seconds["ours"]))
    print(f"{documents:,} documents, {size / 1e6:.1f} MB; ours is {ratio:.2f}x as fast; "
          f"the rules decide differently on {len(kept ^ mine)} documents")


def _fresh(root: str, name: str) -> Path:
    directory = Path(root) / name
    directory.mkdir()
    return directory


def scale(where: str, sizes: Sequence[int]) -> None:
    """Seconds and peak memory on growing samples."""
    table = Table("MB read", "documents", "seconds", "MB/s", "peak RSS, MB", "left")
    for size in sizes:
        command = [sys.executable, "-m", "benchmarks.curate", "one", "--input", where, "--bytes", str(size)]
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        table.add_row(f"{done['bytes'] / 1e6:.0f}", f"{done['documents']:,}", f"{done['seconds']:.0f}",
                      f"{done['bytes'] / 1e6 / done['seconds']:.2f}", f"{done['rss'] / 1e6:.0f}", f"{done['left']:,}")
    Console().print(table)


def one(where: str, size: int) -> None:
    """One run of `scale`; the last line is its figures as JSON."""
    files = draw_sample(list_files(where), size)
    params = replace(profile(), shards=16)
    with tempfile.TemporaryDirectory() as root:
        started = time.monotonic()
        catalogue = ours(files, params, Path(root))
        heldout = catalogue.heldout(params.heldout_share)
        catalogue.keep_apart(heldout, params.quality.min_characters, params.memory_bytes, params.workers)
        seconds = time.monotonic() - started
        first = [read_accounts(directory)[0][0] for directory in catalogue.shards]
    own, worker = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peak = own + params.workers * worker  # of children the system tells only the largest
    print(json.dumps({"bytes": sum(tally.bytes for tally in first), "documents": sum(tally.documents for tally in first),
                      "seconds": seconds, "rss": peak * 1024, "left": len(catalogue)}))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compare", "scale", "one"], metavar="{compare,scale}", help="`one` is a measurement of scale's")
    parser.add_argument("--input", default="system+docs")
    parser.add_argument("--bytes", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "compare":
        compare(options.input, (options.bytes or [20_000_000])[0], options.rounds)
    elif options.what == "scale":
        scale(options.input, options.bytes or [50_000_000, 150_000_000, 450_000_000])
    else:
        one(options.input, options.bytes[0])


if __name__ == "__main__":
    main()
