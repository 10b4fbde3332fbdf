"""The parameters of the stage, checked when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stagecraft.contract.bounded import AboveZero, Count, Positive, Seed, Share
from stagecraft.contract.params import params

TASKS = Path(__file__).with_name("tasks")
"""Where the benchmarks' YAML files lie."""
MODELS = ("base", "sft", "aligned", "fp8", "nvfp4")
MADE_PROMPTS = 100
"""Of a benchmark that is made here, where `prompts` is 0."""


@params
class Tasks:
    """Exact match: greedy answers to the held-out tasks.

    Attributes:
        prompts: how many, shared evenly among the families, two of each at least; all there are if there are fewer.
        max_new_tokens: an answer that has not ended by then counts as wrong.
    """

    prompts: Annotated[int, Field(ge=2)]
    max_new_tokens: Positive


@params
class Text:
    """Bits per byte: held-out documents, each up to `document_bytes`, until `bytes` are read.

    Attributes:
        bytes: UTF-8 bytes in all.
        document_bytes: at most that much of one document: many documents give a smaller standard error than a few long ones.
        window: tokens the model sees at once.
        overlap: tokens of the preceding window that a window starts with, as context that is not scored again.
    """

    bytes: Positive
    document_bytes: Positive
    window: Annotated[int, Field(ge=2)]
    overlap: Positive

    def __post_init__(self) -> None:
        if self.overlap >= self.window:
            raise ValueError(f"overlap must be below window ({self.window}), or no token would be new")


@params
class Sampling:
    """pass@k: several sampled answers to the first prompts of the held-out tasks.

    Attributes:
        models: whom to ask; an empty list leaves this out.
        prompts: how many of the prompts of exact match.
        samples: answers to each; pass@1 to pass@samples come from the same answers.
        temperature: of sampling.
    """

    models: list[str]
    prompts: Annotated[int, Field(ge=2)]
    samples: Annotated[int, Field(ge=2)]
    temperature: AboveZero

    def __post_init__(self) -> None:
        unknown = [name for name in self.models if name not in MODELS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no model of this pipeline; they are {', '.join(MODELS)}")


@params
class Benchmarks:
    """Tasks that lm-eval runs; each is a file of components/evaluate/tasks.

    Attributes:
        tasks: names of the files, without `.yaml`; an empty list leaves lm-eval out.
        data: folder with the data of the real benchmarks, as their files say; nothing is ever downloaded. `""` if there is none.
        prompts: of each task, at most, two or more; 0 for all (of tasks made here, 100).
        lengths: words of the contexts of the long-context tasks made here.
        max_new_tokens: of an answer, whatever more a task grants.
    """

    tasks: list[str]
    data: str
    prompts: Count
    lengths: Annotated[list[Positive], Field(min_length=1)]
    max_new_tokens: Positive

    def __post_init__(self) -> None:
        known = sorted(path.stem for path in TASKS.glob("*.yaml"))
        unknown = [name for name in self.tasks if name not in known]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no task; they are {', '.join(known)}")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("a task is named twice")
        if self.prompts == 1:
            raise ValueError("prompts is 1, a standard error needs two (0 takes all)")


@params
class Gate:
    """What must hold before a model is promoted (gate.py and champion.py say how each number is used).

    Attributes:
        candidates: best liked first; the first one that passes is promoted.
        confidence: of the one-sided bounds on differences.
        base_max_exact_match: a base model above this has seen the tasks, or the verifier is too easily pleased.
        base_max_bits_per_byte: a base model above this has not learned to predict text.
        aligned_min_gain: by how much aligned must beat sft.
        quantized_max_loss: by how much a quantised model may fall behind aligned.
        min_exact_match: what the promoted model must reach.
        family_max_loss: by how much any task family or benchmark may fall behind the registered champion.
        family_confidence: of that, and of being worse over all prompts, one-sided.
        other_protocol: a champion that was measured in another way is kept (`refuse`), replaced, with a line that says so (`replace`), or
            replaced if its model lies no longer where it was registered, so that nobody could serve it (`replace_gone`).
    """

    candidates: Annotated[list[str], Field(min_length=1)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    base_max_exact_match: Share
    base_max_bits_per_byte: AboveZero
    aligned_min_gain: Annotated[float, Field(ge=-1, le=1)]
    quantized_max_loss: Share
    min_exact_match: Share
    family_max_loss: Share
    family_confidence: Annotated[float, Field(gt=0.5, lt=1)]
    other_protocol: Literal["refuse", "replace_gone", "replace"]

    def __post_init__(self) -> None:
        unknown = [name for name in self.candidates if name not in ("aligned", "fp8", "nvfp4")]
        if unknown:
            raise ValueError(f"{unknown[0]!r} cannot be promoted; candidates are nvfp4, fp8, aligned")


@params
class Params:
    """Parameters of the evaluate stage.

    Attributes:
        seed: chooses the documents and seeds the sampled answers.
        processes: models evaluated at a time, each in a process of its own.
        tensor: processes that divide each of these models, each with a GPU of its own where there are GPUs.
        threads: threads of each process.
        dtype: what the engine computes in.
        max_model_len: prompt and answer, or a window of text, in tokens.
        max_num_seqs: sequences in one batch.
        contamination: look for the prompts and documents of all tasks in the text that was trained on.
    """

    seed: Seed
    processes: Positive
    tensor: Positive
    threads: Positive
    dtype: str
    max_model_len: Positive
    max_num_seqs: Positive
    tasks: Tasks
    text: Text
    pass_at_k: Sampling
    benchmarks: Benchmarks
    contamination: bool
    gate: Gate

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype {self.dtype!r} is none of float32, bfloat16, float16")
        if self.text.window >= self.max_model_len:
            raise ValueError(f"text.window ({self.text.window}) must be below max_model_len ({self.max_model_len})")
        if self.tasks.max_new_tokens >= self.max_model_len:
            raise ValueError(f"tasks.max_new_tokens ({self.tasks.max_new_tokens}) must be below max_model_len ({self.max_model_len})")
        if self.benchmarks.max_new_tokens >= self.max_model_len:
            raise ValueError(f"benchmarks.max_new_tokens ({self.benchmarks.max_new_tokens}) must be below max_model_len "
                             f"({self.max_model_len})")
