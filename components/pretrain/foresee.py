"""What pre-training refuses, told before there is a corpus."""

from __future__ import annotations

from components.pretrain.memory import trainings
from components.pretrain.params import Params
from stagecraft.contract.cluster import Pod
from stagecraft.contract.errors import UserError
from stagecraft.contract.stages import Profile
from stagecraft.planning.fit import refuse_too_large


def foresee(profile: Profile, pod: Pod | None) -> None:
    """Refuse what this stage would refuse once the corpus is there.

    Raises:
        UserError: the model's vocabulary is not the corpus's; the ranks cannot be divided; on this machine, a format would be emulated that
            is not to be; on a cluster, the GPUs are too small.
    """
    params: Params = profile["pretrain"]
    if "curate" in profile:
        refuse_vocabulary(params, profile["curate"].vocab_size)
    ranks = pod.ranks(params.processes) if pod else params.processes
    if ranks:
        params.check_ranks(ranks)
    if not pod and not params.emulate:
        refuse_emulated(params)
    if pod and ranks:
        refuse_too_large(trainings(params, ranks), pod)


def refuse_vocabulary(params: Params, size: int) -> None:
    """Refuse a model for another vocabulary than the tokenizer's, of `size` entries.

    Raises:
        UserError: the sizes differ.
    """
    if size != params.architecture.vocab_size:
        raise UserError(f"vocab_size is {params.architecture.vocab_size}, but the corpus's tokenizer has {size} entries",
                        where="pretrain.architecture.vocab_size", mend=f"set it to {size}, or curate.vocab_size to yours")


def refuse_emulated(params: Params) -> None:
    """Refuse a profile that rules out emulation on a machine without a GPU. (Which formats one has shows when the model is built.)

    Raises:
        UserError: a format would be emulated.
    """
    from stagecraft.megatron_cpu import ON_CPU

    import torch

    from stagecraft.model.hardware import Hardware
    from stagecraft.model.ladder import ladder, refuse_emulation, resolve

    if ON_CPU:
        hardware = Hardware.planned(None, (), torch.float32)
        layers = resolve(params.architecture, params.precision, hardware, mtp=bool(params.mtp_depths), dtype=getattr(torch, params.dtype))
        refuse_emulation(ladder(layers), hardware)
