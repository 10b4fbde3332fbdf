"""The checkpoint to quantise: read, checked, and its MTP tensors, which transformers leaves aside."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from stagecraft.contract.checkpoint import MEND, read_config
from stagecraft.contract.errors import UserError

if TYPE_CHECKING:
    from transformers import NemotronHForCausalLM


def source_config(directory: Path) -> dict[str, Any]:
    """config.json of the checkpoint.

    Raises:
        UserError: unreadable, of another architecture, or quantised already.
    """
    config = read_config(directory)
    if "quantization_config" in config:
        raise UserError("this checkpoint is quantised already", where=str(directory), mend="give the one it was made from")
    return config


def load_model(directory: Path) -> NemotronHForCausalLM:
    """A fresh copy of the model in the checkpoint's own dtypes, on the CPU or the GPU that is there, without its MTP block.

    Raises:
        UserError: the weights are unreadable or do not fit the configuration.
    """
    import torch
    from transformers import NemotronHForCausalLM
    from transformers.utils import logging

    # A model that ModelOpt searched or that computes with rounded inputs refers back to itself: only the garbage collector frees it, and
    # a second one does not fit beside it where the model is large.
    gc.collect()
    torch.cuda.empty_cache()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, found = NemotronHForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"unreadable weights: {error}", where=str(directory), mend=MEND) from None
    if found["missing_keys"]:
        raise UserError(f"the weights lack {min(found['missing_keys'])}", where=str(directory), mend=MEND)
    _unround(model, directory)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _unround(model: NemotronHForCausalLM, directory: Path) -> None:
    """Take over anew what is stored in float32: transformers has put `A_log` and `D` into the dtype of the model's matrices."""
    import torch

    rounded = {name: parameter for name, parameter in model.named_parameters() if parameter.dtype != torch.float32}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as stream:
            for stored in stream.keys():  # noqa: SIM118
                name = stored.replace("backbone.", "model.", 1)
                if name in rounded and stream.get_slice(stored).get_dtype() == "F32":
                    rounded[name].data = stream.get_tensor(stored)


def weight_bytes(directory: Path) -> int:
    """Bytes of all weight files."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))
