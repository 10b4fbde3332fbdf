"""Whether a stage's training fits the GPUs that a profile asks a cluster for: told before anything is sent there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from stagecraft.contract.cluster import Pod
from stagecraft.contract.errors import UserError
from stagecraft.planning.architecture import Shapes, nemotron_h
from stagecraft.planning.formats import formats
from stagecraft.planning.hardware import efficiencies, gpu
from stagecraft.planning.layout import Layout, Workload
from stagecraft.planning.memory import Memory, State, training_memory

# Labels that NVIDIA's feature discovery gives to nodes; by them a profile asks for GPUs.
FAMILY, PRODUCT = "nvidia.com/gpu.family", "nvidia.com/gpu.product"
MEMBERS = {"hopper": ("H100", "H200"), "blackwell": ("B200", "GB200", "GB300")}  # of gpus.yaml


class Division(Protocol):
    """What is read of a layout as profiles say it (`stagecraft.engine.layout.Layout`)."""

    tensor: int
    pipeline: int
    context: int
    expert: int
    recompute: str

    def data(self, ranks: int) -> int:
        """Data-parallel ranks out of `ranks`."""


def engine_memory(shapes: Shapes, layout: Division, ranks: int, work: Workload, precision: str, micro: int = 1) -> Memory:
    """Of the fullest GPU of any training by `stagecraft.engine`.

    Args:
        precision: a recipe of formats.yaml.
        micro: rows of a microbatch.
    """
    planned = Layout(tp=layout.tensor, pp=layout.pipeline, cp=layout.context, ep=layout.expert, dp=layout.data(ranks), micro=micro,
                     recompute=layout.recompute)
    recipe = formats("training", precision)
    state = replace(State.of(recipe), logit=4.0, whole=True)  # the engine's losses are of float32 logits
    return training_memory(nemotron_h(shapes), work, planned, recipe, state)


def packs_memory(shapes: Shapes, layout: Division, ranks: int, tokens: int, mtp_depths: int) -> Memory:
    """The same in bfloat16, one pack of so many tokens at a time."""
    return engine_memory(shapes, layout, ranks, Workload(tokens, layout.data(ranks), mtp_depths), "bf16")


def usable(kind: str) -> float:
    """Bytes that a training can count on of a GPU's."""
    return gpu(kind).memory * efficiencies().memory_use


def at_most(kind: str) -> float:
    """Bytes that there are at most: what data sheets call GB drivers report as GiB, less a little (of an H200's 141, 143,771 MiB)."""
    return gpu(kind).memory * 2**30 / 1e9


def kinds(selector: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs of gpus.yaml that nodes with these labels may have; none where the labels do not tell, or name a variant of one."""
    members = MEMBERS.get(selector.get(FAMILY, "").casefold(), ())
    words = selector.get(PRODUCT, "").upper().split("-")  # such as NVIDIA-H100-80GB-HBM3
    if "NVL" in words:  # with other memory
        return ()
    return tuple(kind for family in MEMBERS.values() for kind in family if kind in words) or members


def refuse_too_large(needs: Mapping[str, Memory], pod: Pod) -> None:
    """Refuse what fits none of the GPUs that the pod's nodes may have. The GPUs on which it does fit are the scheduler's to find.

    Args:
        needs: of the fullest GPU, by what the profile calls the training.

    Raises:
        UserError: names the training, and what it needs.
    """
    found = kinds(pod.node_selector) if pod.gpu.count else ()
    if not found:
        return
    most = max(map(at_most, found))
    for where, memory in needs.items():
        if memory.total > most:
            raise UserError(f"the fullest GPU needs {memory.total / 1e9:.1f} GB, of which {memory.activations / 1e9:.1f} for activations; "
                            f"{' or '.join(found)} has at most {most / 1e9:.1f}", where=where,
                            mend="divide the model over more GPUs, or set recompute; `stagecraft plan` finds a layout that fits")
