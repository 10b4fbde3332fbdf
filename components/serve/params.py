"""The parameters of the stage, checked when they are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stagecraft.contract.bounded import Count, NonNegative, Positive, Seed
from stagecraft.contract.params import params
from stagecraft.data.tasks import check_families
from stagecraft.inference.server_settings import Settings

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=50)]


@params
class Check:
    """What the running server is asked before it may be called working.

    Attributes:
        prompts_per_family: fresh task prompts a family, each asked with and without drafts.
        max_tokens: of an answer.
        tie: gap of the two best tokens, in nats, below which it is rounding that picks one of them: an answer that drafts change
            at such a place is no error. At least that; twice what batching moves this model's gaps if that is more.
    """

    prompts_per_family: Positive
    max_tokens: Positive
    tie: NonNegative


@params
class Modes:
    """The reasoning modes, measured.

    Attributes:
        families: of the task prompts asked; those that the model thinks about.
        prompts: of each family, every one asked in each mode.
        budget: tokens of thinking after which the server ends it, in the mode that has one.
        max_tokens: of an answer, thinking included.
    """

    families: Annotated[list[str], Field(min_length=1)]
    prompts: Annotated[int, Field(gt=1)]
    budget: Count
    max_tokens: Positive

    def __post_init__(self) -> None:
        check_families(self.families)
        if self.budget >= self.max_tokens:
            raise ValueError(f"a budget of {self.budget} leaves no room for an answer in max_tokens ({self.max_tokens})")


@params
class Load:
    """The load test.

    Attributes:
        concurrencies: how many clients ask at once, one measurement each, fewest first.
        requests: of a measurement at least; never less than one of each client.
        max_tokens: length of every answer; ends are ignored, so that all measurements do the same work.
    """

    concurrencies: Annotated[list[Positive], Field(min_length=1)]
    requests: Positive
    max_tokens: Annotated[int, Field(gt=1)]

    def __post_init__(self) -> None:
        if self.concurrencies != sorted(set(self.concurrencies)):
            raise ValueError("concurrencies must rise")


@params
class Deployment:
    """The Kubernetes deployment that is written.

    Attributes:
        image: vLLM's image for GPUs.
        replicas: pods.
        gpus: of a pod, the tensor-parallel size too.
        cpus: of a pod.
        memory: of a pod, a Kubernetes quantity.
        dtype: what the engine computes in where the checkpoint is not quantised.
        max_model_len: tokens of prompt and answer.
        max_num_seqs: sequences in one batch.
        ssm_cache: what a Mamba state is kept in between two tokens; float16 rounded stochastically is unbiased, at half of float32's size.
        claim: PersistentVolumeClaim with the promoted checkpoint at its root, mounted read-only.
        secret: Secret whose key `api-key` clients must present.
        clients: value of the pod label `stagecraft.dev/client` that lets a pod in the namespace reach the server.
    """

    image: Annotated[str, Field(pattern=r"^\S+[:@]\S+$")]
    replicas: Positive
    gpus: Positive
    cpus: Positive
    memory: Annotated[str, Field(pattern=r"^[0-9]+(Mi|Gi|Ti)$")]
    dtype: Annotated[str, Field(pattern=r"^(auto|bfloat16|float16|float32)$")]
    max_model_len: Positive
    max_num_seqs: Positive
    ssm_cache: Literal["float32", "float16", "float16_stochastic"]
    claim: Name
    secret: Name
    clients: Name


@params
class Params:
    """Parameters of the serve stage.

    Attributes:
        seed: of the prompts drawn.
        server: the server on this machine; `stagecraft serve` starts the same.
        check: what it is checked with.
        modes: the comparison of reasoning modes.
        load: the load test.
        deployment: what is written for a cluster.
    """

    seed: Seed
    server: Settings
    check: Check
    modes: Modes
    load: Load
    deployment: Deployment

    def __post_init__(self) -> None:
        if max(self.check.max_tokens, self.modes.max_tokens, self.load.max_tokens) >= self.server.max_model_len:
            raise ValueError("max_tokens of check, modes and load must leave room for a prompt in server.max_model_len "
                             f"({self.server.max_model_len})")
