"""An exported checkpoint computed as a server computes it: stored weights dequantised, inputs of operators and the KV cache rounded.

What is measured of a quantised model is measured on this, never on the model that ModelOpt holds in memory: the export rounds
some things a second time (Q, K and V share one tensor scale, FP8 weights are divided in the checkpoint's own dtype).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from stagecraft.numerics import fp8, nvfp4

Stored = Mapping[str, Tensor]
"""The tensors of a checkpoint under their own names."""


def read_tensors(directory: Path, mtp: bool = False) -> dict[str, Tensor]:
    """Every tensor of a checkpoint but those of the MTP block, or those alone; as stored."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as stream:
            tensors.update({name: stream.get_tensor(name) for name in stream.keys() if name.startswith("mtp.") is mtp})  # noqa: SIM118
    return tensors


class Exported:
    """A transformers model that takes over the tensors of one exported checkpoint after another.

    Args:
        model: of the same architecture, unquantised (`source.load_model`); its weights are overwritten.
    """

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self._hooks: list[RemovableHandle] = []
        self._rounding: list[torch.nn.Module] = []

    @torch.no_grad()
    def load(self, stored: Stored) -> torch.nn.Module:
        """The model with these weights, rounding what the scales among them say is rounded."""
        self._unload()
        device = self.model.device
        for name, parameter in self.model.state_dict().items():
            stem = name.replace("model.", "backbone.", 1) if name.startswith("model.") else name
            if ".experts." in stem:
                for expert, slot in enumerate(parameter):
                    slot.copy_(_weight(stored, stem.replace(".experts.", f".experts.{expert}."), device))
            else:
                parameter.copy_(_weight(stored, stem.removesuffix(".weight"), device) if stem.endswith(".weight") else stored[stem])
        for name, module in self.model.named_modules():
            self._round(name.replace("model.", "backbone.", 1), module, stored)
        return self.model

    def _round(self, name: str, module: torch.nn.Module, stored: Stored) -> None:
        device = self.model.device
        if f"{name}.input_scale" in stored:
            rounding, scale = _rounding(stored[f"{name}.weight"]), stored[f"{name}.input_scale"].to(device)
            self._hooks.append(module.register_forward_pre_hook(
                lambda _, inputs, rounding=rounding, scale=scale: (rounding(inputs[0], scale), *inputs[1:])))
        for key in ("k_scale", "v_scale"):
            if f"{name}.{key}" in stored:
                scale = stored[f"{name}.{key}"].to(device)
                self._hooks.append(module.register_forward_hook(lambda _, inputs, output, scale=scale: fp8.round_static(output, scale)))
        if f"{name}.0.up_proj.input_scale" in stored:
            scales = [[stored[f"{name}.{expert}.{part}.input_scale"].to(device) for part in ("up_proj", "down_proj")]
                      for expert in range(module.num_experts)]
            module.forward = partial(_experts, module, _rounding(stored[f"{name}.0.up_proj.weight"]), scales)
            self._rounding.append(module)

    def _unload(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for module in self._rounding:
            del module.forward
        self._hooks, self._rounding = [], []


def _experts(module: torch.nn.Module, rounding: Callable[[Tensor, Tensor], Tensor], scales: list[list[Tensor]],
             hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    """The forward pass of `NemotronHExperts`: [N, latent], experts and their shares [N, k] -> [N, latent]."""
    total = torch.zeros_like(hidden)
    for expert in chosen.unique().tolist():
        token, place = torch.where(chosen == expert)
        up, down = scales[expert]
        x = module.act_fn(F.linear(rounding(hidden[token], up), module.up_proj[expert]))
        x = F.linear(rounding(x, down), module.down_proj[expert])
        total.index_add_(0, token, (x * shares[token, place, None]).to(total.dtype))
    return total


def _rounding(weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Inputs are rounded to the format of the stored weight."""
    return nvfp4.round_static if weight.dtype == torch.uint8 else fp8.round_static


def _weight(stored: Stored, module: str, device: torch.device) -> Tensor:
    """The weight of a module, float32 if it was quantised."""
    weight, scale = stored[f"{module}.weight"].to(device), stored.get(f"{module}.weight_scale")
    if scale is None:
        return weight
    if weight.dtype == torch.uint8:
        return nvfp4.dequantize(weight, scale.to(device), stored[f"{module}.weight_scale_2"].to(device))
    return fp8.dequantize(weight, scale.to(device))
