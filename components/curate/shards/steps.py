"""The steps of a shard, in the order in which they run; datatrove's executors drive them, on one machine or many.

A step takes documents one by one, changes them or gives the reason why they are removed, and keeps account. The last writes the result.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from socket import gethostname
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from components.curate.categories import CODE, category, is_code
from components.curate.dedup.signature import signature, text_digest
from components.curate.params import Params
from components.curate.quality import broken_bound
from components.curate.reading.formats import read
from components.curate.rules.bounds import ANY_LANGUAGE, RuleBounds
from components.curate.rules.check import failed_rule
from components.curate.shards.plan import read_plan
from components.curate.shards.store import Writer
from components.curate.shards.tally import Tally
from components.curate.synthetic import SOURCE as SYNTHETIC
from components.curate.tiers.classifier import Classifier, tier
from stagecraft.contract.files import write_atomic
from stagecraft.data.decontamination import EvaluationIndex
from stagecraft.data.language import LanguageId, surely_other
from stagecraft.data.normalise import normalise
from stagecraft.data.pii import redact
from stagecraft.data.scan import scan

logger.disable("datatrove")  # the run log tells how far the shards are; workers import this module before they start


class Job:
    """What the steps of a shard share. Some executors run one task after the other with the same copy: what is counted starts anew.

    Args:
        keys: of the shards, one task each, by rank; their plans lie in `results`.
        results: directory of the results.
        params: of the stage.
    """

    def __init__(self, keys: Sequence[str], results: Path, params: Params):
        self.keys, self.results, self.params = keys, results, params
        self.broken: dict[str, str] = {}
        self.matches: list[dict[str, Any]] = []
        self.tallies: dict[str, Tally] = {}


class Step(PipelineStep):
    """A step that may change a document or remove it."""

    type = "curate"

    def __init__(self, job: Job):
        super().__init__()
        self.job, self.tally = job, Tally(self.name)
        job.tallies[self.name] = self.tally

    def apply(self, document: Document) -> tuple[str, str] | None:
        """Work on one document; (reason, explanation) removes it."""
        raise NotImplementedError

    def open(self) -> None:
        """Load what the step needs, in the process that runs it."""

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Apply the step to all documents; its account is complete when they are through."""
        self.open()
        self.job.tallies[self.name] = self.tally = Tally(self.name)
        for document in data:
            size = document.metadata["bytes"]
            self.tally.take(size)
            verdict = self.apply(document)
            if verdict is None:
                yield document
            else:
                reason, why = verdict
                self.tally.remove(reason, size, {"id": document.id, "document": _name(document), "why": why, "text": document.text[:200]})


def _name(document: Document) -> str:
    return f"{document.metadata['source']}/{document.metadata['path']}"


class Read(PipelineStep):
    """Gives the documents of the files of a shard."""

    type, name = "curate", "read"

    def __init__(self, job: Job):
        super().__init__()
        self.job = job

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yield documents file by file; what cannot be read is told by name."""
        self.job.broken, self.job.matches = {}, []
        for file in read_plan(self.job.results, self.job.keys[rank]):
            for document in read(file, self.job.broken.__setitem__, self.job.params.max_document_bytes):
                document.metadata["bytes"] = len(document.text.encode())
                yield document


class Normalise(Step):
    """Unicode, newlines, blanks. An empty text ends here."""

    name = "normalise"

    def apply(self, document: Document) -> tuple[str, str] | None:
        self.tally.count(document.metadata["source"])
        document.text = normalise(document.text)
        document.metadata["bytes"] = len(document.text.encode())
        return ("empty", "no text") if not document.text.strip() else None


class Language(Step):
    """The language of what is not code; languages not asked for are removed."""

    name = "language"

    def open(self) -> None:
        self.identifier, self.wanted = LanguageId(), set(self.job.params.languages)

    def apply(self, document: Document) -> tuple[str, str] | None:
        if is_code(document.metadata):
            document.metadata.update(language=CODE, language_probability=None)
            return None
        language, probability = self.identifier.identify(document.text)
        document.metadata.update(language=language, language_probability=probability)
        self.tally.count(language)
        if self.wanted and language not in self.wanted and probability >= self.job.params.min_language_probability:
            return f"language_{language}", f"{language} with probability {probability:.2f}"
        return None


class Quality(Step):
    """The bounds for all texts; then the published rule sets, which pick prose from the web, for what is neither code nor synthetic. Of a
    text in another language than English only the rules are asked that know no language."""

    name = "quality"

    def open(self) -> None:
        self.english = RuleBounds(families=tuple(self.job.params.rules.families), **self.job.params.rules.bounds)
        self.other = replace(self.english, families=tuple(name for name in self.english.families if name in ANY_LANGUAGE))

    def apply(self, document: Document) -> tuple[str, str] | None:
        known, sure = document.metadata, self.job.params.min_language_probability
        rule = broken_bound(document.text, self.job.params.quality)
        if rule is None and known["language"] != CODE and known["source"] != SYNTHETIC:
            other = surely_other(known["language"], known["language_probability"], sure)
            rule = failed_rule(document.text, self.other if other else self.english)
        return rule and (rule, rule.replace("_", " "))


class Redact(Step):
    """Personal data are replaced by placeholders; nothing is removed."""

    name = "redact"

    def apply(self, document: Document) -> tuple[str, str] | None:
        document.text, found = redact(document.text)
        for kind, count in found.items():
            self.tally.count(kind, count)
        document.metadata["bytes"] = len(document.text.encode())
        return None


class Decontaminate(Step):
    """Documents that share 13 words in a row, or a whole line, with an evaluation set are removed and the match is kept."""

    name = "decontaminate"

    def open(self) -> None:
        self.index = EvaluationIndex.load(self.job.results / "evaluation.npz")

    def apply(self, document: Document) -> tuple[str, str] | None:
        scanned = scan(document.text)
        document.metadata["words"] = scanned.word_hash_lower
        found = self.index.matches(document.text, scanned)
        if not found:
            return None
        self.job.matches += [{"id": document.id, "document": _name(document), "set": match.set, "row": match.row, "kind": match.kind,
                              "text": match.text} for match in found]
        return f"in_{found[0].set}", f"{found[0].kind} match with row {found[0].row} of {found[0].set}: {found[0].text}"


class Label(Step):
    """Fingerprints for deduplication, quality score and tier, category."""

    name = "label"

    def open(self) -> None:
        self.classifier = Classifier.load(self.job.results / "classifier.npz")

    def apply(self, document: Document) -> tuple[str, str] | None:
        score = self.classifier.score(document.text)
        level = tier(score)
        document.metadata.update(
            signature=signature(document.metadata.pop("words")), fingerprint=text_digest(document.text), score=score, tier=level,
            category=category(document.text, document.metadata, level))
        return None


class Write(PipelineStep):
    """Writes the result of a shard and gives it its name when all is on disk."""

    type, name = "curate", "write"

    def __init__(self, job: Job):
        super().__init__()
        self.job = job

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Drain the documents; yields none."""
        key = self.job.keys[rank]
        directory = self.job.results / f".{key}.{gethostname()}.{os.getpid()}.tmp"  # a cluster may run a task again before it is dead
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        writer = Writer(directory)
        for document in data:
            writer.add(document)
        writer.close()
        accounts = {"steps": [tally.plain() for tally in self.job.tallies.values()], "broken": self.job.broken, "matches": self.job.matches}
        write_atomic(directory / "tallies.json", json.dumps(accounts))
        if (self.job.results / key).is_dir():
            shutil.rmtree(directory)
        else:
            directory.rename(self.job.results / key)
        yield from ()


STEPS = (Normalise, Language, Quality, Redact, Decontaminate, Label)


def pipeline(job: Job) -> list[PipelineStep]:
    """Reader, steps and writer of a shard."""
    return [Read(job), *(step(job) for step in STEPS), Write(job)]
