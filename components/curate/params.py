"""The parameters of the curate stage, with what makes a value impossible."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from components.curate.categories import CATEGORIES
from components.curate.rules.bounds import RuleBounds
from components.curate.synthetic.families import FAMILIES as SYNTHETIC_FAMILIES
from stagecraft.contract.bounded import AboveZero, Count, NonNegative, Positive, Seed, Share
from stagecraft.contract.params import params
from stagecraft.data.tasks import divide_rows
from stagecraft.data.tokenizer import SMALLEST_VOCABULARY
from stagecraft.endpoint import EndpointParams


@params
class QualityParams:
    """Bounds of the quality rules; a document outside one of them is removed and counted under the rule's name."""

    min_characters: Positive
    max_characters: Positive
    max_line_characters: Positive
    min_letter_share: Share
    min_ascii_share: Share
    max_repeated_share: Share


@params
class RuleParams:
    """The published rule sets that texts other than code must pass, and where their bounds differ from datatrove's defaults."""

    families: list[Literal["gopher", "repetition", "c4", "fineweb"]]
    bounds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {item.name for item in fields(RuleBounds) if isinstance(item.default, int | float)}
        for name in self.bounds:
            if name not in known:
                raise ValueError(f"rules.bounds names {name!r}; the bounds are {', '.join(sorted(known))}")


@params
class PhaseParams:
    """The blend of one phase.

    Args:
        tokens: the phase trains on; with `max_epochs` it bounds how often a small category is repeated.
        categories: category -> weight; empty: as much of each as there is.
        tiers: factor for each of the five quality tiers, lowest first, within a category.
    """

    tokens: Positive
    categories: dict[str, AboveZero]
    tiers: Annotated[list[NonNegative], Field(min_length=5, max_length=5)]

    def __post_init__(self) -> None:
        for name in self.categories:
            if name not in CATEGORIES:
                raise ValueError(f"unknown category {name!r}; the categories are {', '.join(CATEGORIES)}")
        if not any(self.tiers):
            raise ValueError("the factors of all tiers are 0")


@params
class BlendParams:
    """What each phase of pre-training trains on."""

    max_epochs: AboveZero
    phase1: PhaseParams
    phase2: PhaseParams
    long_min_characters: Positive  # documents at least this long become long-document questions
    long_share: Share              # of the long-context blend; the rest is phase 2's


@params
class TaskParams:
    """The synthetic tasks: rows per set; by family the share of flawed SFT demonstrations and its weight among the SFT rows (1)."""

    sft_rows: Positive
    rl_rows: Positive
    heldout_rows: Positive
    flawed: Annotated[dict[str, Share], Field(min_length=1)]
    sft_weights: dict[str, AboveZero] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = divide_rows(self.counts, self.flawed, self.sft_weights)
        for family in self.sft_weights:
            if family not in self.flawed:
                raise ValueError(f"sft_weights names {family!r}, which `flawed` leaves out")
        if min(self.sft_rows, self.rl_rows, self.heldout_rows) < len(self.flawed):
            raise ValueError(f"fewer rows than the {len(self.flawed)} task families")
        if none := [family for family, rows in parts["sft"].items() if not rows]:
            raise ValueError(f"of {self.sft_rows} sft_rows task family {none[0]!r} would get none; give more, or it a larger weight")

    @property
    def counts(self) -> dict[str, int]:
        """Rows by split."""
        return {"sft": self.sft_rows, "rl": self.rl_rows, "heldout": self.heldout_rows}


@params
class AuthorParams(EndpointParams):
    """The OpenAI endpoint whose model writes the synthetic data; without a url templates write them.

    Args:
        max_retries: of a request that fails with 429, 5xx or on the way, with growing pauses.
    """

    PLACEMENT: ClassVar = (*EndpointParams.PLACEMENT, "max_retries")

    temperature: Annotated[float, Field(ge=0, le=2)]
    max_retries: Count

    def __post_init__(self) -> None:
        if self.url and not self.model:
            raise ValueError("the endpoint has a url but no model")


@params
class SyntheticParams:
    """What is made here: documents by family (a family left out is not made), and rows per family for tasks/sft.jsonl and rl.jsonl."""

    documents: dict[str, Count]
    sft_rows: Count
    rl_rows: Count
    endpoint: AuthorParams

    def __post_init__(self) -> None:
        for family in self.documents:
            if family not in SYNTHETIC_FAMILIES:
                raise ValueError(f"unknown synthetic family {family!r}; there are {', '.join(SYNTHETIC_FAMILIES)}")


@params
class SlurmParams:
    """What Slurm is asked for, if it is the executor.

    Args:
        partition, time, qos: as sbatch takes them; an empty qos is left out.
        cpus_per_task, memory_gb: a task uses one CPU; gigabytes are per CPU.
        tasks_per_job: shards worked on by one job of an array, one after the other.
        max_array_size: the cluster's limit; more jobs are submitted as further arrays.
        sbatch: further arguments, name without dashes -> value.
        setup: shell commands before the work, such as `module load python`.
    """

    partition: Annotated[str, Field(min_length=1)]
    time: Annotated[str, Field(min_length=1)]
    qos: str
    cpus_per_task: Positive
    memory_gb: Positive
    tasks_per_job: Positive
    max_array_size: Positive
    sbatch: dict[str, str] = field(default_factory=dict)
    setup: str = ""


@params
class Params:
    """Parameters of the stage.

    Args:
        input: `system`, `system+docs`, a directory, a file, or an fsspec URI.
        sample_bytes: bytes of files to read, chosen by hash of their names.
        shards: parts that are worked on, kept and redone each for itself.
        executor: `local` processes, or the tasks of a cluster; the result does not depend on it.
        workers: shards worked on at a time; the result does not depend on it.
        slurm: for the executor `slurm`.
        memory_bytes: bound of the deduplication's index; the result does not depend on it.
        max_document_bytes: a longer row or file is reported as broken.
        benchmarks: directory with the data of benchmarks, which no document may share text with; "": none.
        languages: ISO 639 codes to keep, of texts other than code; empty: all.
        substring_min_tokens: passages of at least so many words and symbols that occur more than once are cut but once; 0: none.
        seeds: `default`, or a JSONL file of texts with their tiers that the quality classifier learns from.
        tokenizer: `train`, or a directory with a Hugging Face tokenizer.
        reserved_tokens: special tokens without a meaning yet, of a trained tokenizer; `vocab_size` counts them.
    """

    PLACEMENT: ClassVar = ("executor", "workers", "slurm", "memory_bytes")

    seed: Seed
    input: Annotated[str, Field(min_length=1)]
    sample_bytes: Positive
    shards: Positive
    executor: Literal["local", "slurm", "ray"]
    workers: Positive
    slurm: SlurmParams
    memory_bytes: Positive
    max_document_bytes: Positive
    synthetic: SyntheticParams
    benchmarks: str
    languages: list[str]
    min_language_probability: Share
    quality: QualityParams
    rules: RuleParams
    near_duplicate_similarity: Annotated[float, Field(ge=0.5, le=1)]
    substring_min_tokens: Count
    seeds: Annotated[str, Field(min_length=1)]
    blend: BlendParams
    heldout_share: Annotated[float, Field(gt=0, lt=0.5)]
    tokenizer: Annotated[str, Field(min_length=1)]
    vocab_size: Positive
    reserved_tokens: Count
    tokenizer_bytes: Positive
    max_length: Positive
    tasks: TaskParams

    def __post_init__(self) -> None:
        smallest = SMALLEST_VOCABULARY + self.reserved_tokens
        if self.vocab_size < smallest:
            raise ValueError(f"vocab_size {self.vocab_size} is too small: bytes and special tokens alone take {smallest}")
