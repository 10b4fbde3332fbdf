"""What each stage asks of a Kubernetes cluster: the section `cluster` of a profile, read when a pipeline is compiled.

It is no stage's parameter: a change here makes nothing stale, and a run on a laptop takes no notice.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from stagecraft.contract.bounded import Count, Positive
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import params, parse, read_profile, section_of
from stagecraft.contract.stages import STAGES

SECTION = "cluster"

# A task whose stage runs on several nodes finds a `Job` here, as JSON; the stage's command then starts a TrainJob.
TRAINJOB_VARIABLE = "STAGECRAFT_TRAINJOB"
TASK_VARIABLE = "STAGECRAFT_TASK_CONFIG"  # and KFP's TaskConfig

# Stages whose ranks may lie on several nodes: the ones that train.
ON_MANY_NODES = ("pretrain", "sft", "rl")


def _matching(pattern: str, what: str, example: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"no {what}, such as {example}")
        return text
    return AfterValidator(check)


# The forms that KFP takes (kfp/dsl/pipeline_task.py); Kubernetes knows more.
Cpus = Annotated[str, _matching(r"[0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]*[1-9][0-9]*m", "number of processors", "2 or 500m")]
Memory = Annotated[str, _matching(r"[1-9][0-9]*([KMGTPE]i?)", "amount of memory", "8Gi")]
Label = Annotated[str, _matching(r"([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?", "name of a label", "nvidia.com/gpu.family")]
Resource = Annotated[str, _matching(r"[a-z0-9.-]+/[A-Za-z0-9_.-]+", "extended resource", "nvidia.com/gpu")]
Name = Annotated[str, _matching(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", "name of an object", "mlflow-client")]
Variable = Annotated[str, _matching(r"[A-Za-z_][A-Za-z0-9_]*", "name of a variable", "NCCL_DEBUG")]


@params
class Gpu:
    """Accelerators of one pod."""

    type: Resource
    count: Count


@params
class Toleration:
    """A taint that the pod bears; `value` is empty where `operator` is Exists."""

    key: Label
    operator: Literal["Exists", "Equal"]
    value: str
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


@params
class Retries:
    """How often a pod that vanished is started again, one drained or evicted is not; the pause doubles each time."""

    count: Count
    pause_seconds: Positive


@params
class Pod:
    """What one stage asks for. Sizes are those of a pod: of one node, where `nodes` is above 1."""

    image: str
    nodes: Positive
    cpu: Cpus
    memory: Memory
    gpu: Gpu
    shared_memory: Memory
    node_selector: dict[Label, str]
    tolerations: list[Toleration]
    priority: Name
    timeout_seconds: Positive
    retries: Retries
    secrets: dict[Name, dict[str, Variable]]
    environment: dict[Variable, str]

    def ranks(self, processes: int) -> int | None:
        """How many the stage has there: on several nodes one per GPU, on one node the `processes` of its parameters.

        None for several nodes without GPUs, where the training runtime decides.
        """
        if self.nodes == 1:
            return processes
        return self.nodes * self.gpu.count or None

    def __post_init__(self) -> None:
        if self.nodes > 1 and self.secrets:
            raise ValueError("ranks on several nodes take no secrets from here: put them into the training runtime")


@params
class Job:
    """What a TrainJob is asked to be, beside the size and place of its nodes, which KFP's TaskConfig says."""

    nodes: Positive
    image: str
    shared_memory: Memory
    priority: Name
    timeout_seconds: Positive


def parse_cluster(section: Any, shown: str) -> dict[str, Pod]:
    """Check the section of a profile that goes by the name `shown`; every stage has its entry.

    Raises:
        UserError: the first mistake found.
    """
    where = f"{shown}: {SECTION}"
    if not isinstance(section, dict):
        raise UserError("not a mapping of stages", where=where, mend="the repository's params.yaml shows every key")
    for name in section:
        if name not in STAGES:
            raise UserError("unknown stage", where=f"{where}.{name}", mend=f"the stages are {', '.join(STAGES)}")
    pods = {}
    for name in STAGES:
        if name not in section:
            raise UserError("missing", where=f"{where}.{name}", mend="add it; the repository's params.yaml shows every key")
        pods[name] = parse(Pod, section[name], f"{where}.{name}")
        if pods[name].nodes > 1 and name not in ON_MANY_NODES:
            raise UserError(f"{name} runs on one node (found {pods[name].nodes})", where=f"{where}.{name}.nodes",
                            mend=f"set it to 1; more are for {', '.join(ON_MANY_NODES)}")
    return pods


def read_cluster(path: Path) -> dict[str, Pod]:
    """The section of a profile.

    Raises:
        UserError: it is missing or wrong.
    """
    return parse_cluster(section_of(read_profile(path), SECTION, str(path)), str(path))
