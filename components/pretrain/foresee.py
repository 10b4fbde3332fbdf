"""What pre-training refuses, told before there is a corpus."""

from __future__ import annotations

from components.pretrain.params import Params
from stagecraft.contract.errors import UserError
from stagecraft.contract.stages import Profile


def foresee(profile: Profile, local: bool) -> None:
    """Refuse what this stage would refuse once the corpus is there.

    Raises:
        UserError: the model's vocabulary is not the corpus's; or, on this machine, the processes cannot be divided, or a format would be
            emulated that is not to be.
    """
    params: Params = profile["pretrain"]
    if "curate" in profile:
        refuse_vocabulary(params, profile["curate"].vocab_size)
    if local:
        params.check_ranks(params.processes)
        if not params.emulate:
            refuse_emulated(params)


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
