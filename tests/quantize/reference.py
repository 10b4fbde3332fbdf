"""An exported checkpoint read back from the definition of its formats alone: a plain transformers model, nothing of ours.

`reference_model(directory)` has the stored weights dequantised by NumPy tables; with `activations=True` it also rounds, as a
server does, the inputs of quantised operators and the keys and values. Arithmetic is float64 up to the last cast.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import NemotronHConfig, NemotronHForCausalLM

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def e4m3_table() -> np.ndarray:
    """Value of each of the 256 E4M3 codes: sign, 4 exponent bits (bias 7), 3 mantissa bits; all ones is NaN."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    value[(code & 127) == 127] = np.nan
    return np.where(code < 128, value, -value)


E4M3 = e4m3_table()


def stored_tensors(directory: Path) -> dict[str, Tensor]:
    tensors = {}
    for path in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(path, "pt") as stream:
            tensors.update({name: stream.get_tensor(name) for name in stream.keys()})  # noqa: SIM118
    return tensors


def decode_e4m3(codes: Tensor) -> np.ndarray:
    return E4M3[codes.contiguous().view(torch.uint8).numpy()]


def decode_nvfp4(packed: Tensor, scales: Tensor, tensor_scale: Tensor) -> np.ndarray:
    """Two elements a byte, the even one in the low half; 16 elements share a scale."""
    packed = packed.numpy()
    elements = np.stack([E2M1[packed & 15], E2M1[packed >> 4]], -1).reshape(*packed.shape[:-1], -1)
    return elements * np.repeat(decode_e4m3(scales), 16, -1) * float(tensor_scale)


def dequantised(directory: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(every tensor in float32 under its own name, the scales of activations and of the KV cache)."""
    stored = stored_tensors(directory)
    weights, scales = {}, {}
    for name, tensor in stored.items():
        stem = name.removesuffix(".weight")
        if name.endswith((".input_scale", ".k_scale", ".v_scale")):
            scales[name] = tensor
        elif name.endswith((".weight_scale", ".weight_scale_2")):
            continue
        elif tensor.dtype == torch.uint8:
            value = decode_nvfp4(tensor, stored[f"{stem}.weight_scale"], stored[f"{stem}.weight_scale_2"])
            weights[name] = torch.from_numpy(value).float()
        elif tensor.dtype == torch.float8_e4m3fn:
            weights[name] = torch.from_numpy(decode_e4m3(tensor) * float(stored[f"{stem}.weight_scale"])).float()
        else:
            weights[name] = tensor
    return weights, scales


def reference_model(directory: Path, activations: bool = False) -> NemotronHForCausalLM:
    """The checkpoint as a float32 model of transformers, in evaluation mode."""
    directory = Path(directory)
    weights, scales = dequantised(directory)
    settings = json.loads((directory / "config.json").read_text())
    settings.pop("quantization_config", None)
    config = NemotronHConfig(**{**settings, "time_step_min": 1e-12})  # transformers cannot initialise a model with zero
    config._experts_implementation = "eager"
    model = NemotronHForCausalLM(config).float().eval()
    own = {}
    for name, parameter in model.state_dict().items():
        stem = name.replace("model.", "backbone.", 1) if name.startswith("model.") else name
        if ".experts." in stem:
            stack = [weights[f"{stem.replace('.experts.', f'.experts.{expert}.')}.weight"] for expert in range(len(parameter))]
            own[name] = torch.stack(stack)
        else:
            own[name] = weights[stem]
    model.load_state_dict(own)
    if activations:
        _round_activations(model, scales, stored_tensors(directory))
    return model


def _round_activations(model: NemotronHForCausalLM, scales: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    for name, module in model.named_modules():
        stem = name.replace("model.", "backbone.", 1)
        if f"{stem}.input_scale" in scales:
            rounded = partial(_format_of(stored[f"{stem}.weight"]), scale=scales[f"{stem}.input_scale"])
            module.register_forward_pre_hook(lambda _, args, rounded=rounded: (rounded(args[0]), *args[1:]))
        for key in ("k_scale", "v_scale"):
            if f"{stem}.{key}" in scales:
                module.register_forward_hook(lambda _, args, out, scale=scales[f"{stem}.{key}"]: fp8(out, scale))
        if f"{stem}.0.up_proj.input_scale" in scales:
            module.forward = _rounding_experts(module, stem, scales, stored)


def _rounding_experts(module, stem, scales, stored):
    round_input = _format_of(stored[f"{stem}.0.up_proj.weight"])

    def forward(hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        total = torch.zeros_like(hidden)
        for expert in chosen.unique().tolist():
            token, place = torch.where(chosen == expert)
            x = round_input(hidden[token], scales[f"{stem}.{expert}.up_proj.input_scale"])
            x = module.act_fn(x @ module.up_proj[expert].T)
            x = round_input(x, scales[f"{stem}.{expert}.down_proj.input_scale"]) @ module.down_proj[expert].T
            total.index_add_(0, token, x * shares[token, place, None])
        return total

    return forward


def _format_of(weight: Tensor):
    """What the inputs of an operator are rounded with: the format of its stored weight."""
    return nvfp4 if weight.dtype == torch.uint8 else fp8


def fp8(x: Tensor, scale: Tensor) -> Tensor:
    """Nearest of the E4M3 numbers times `scale`, ties to the even code, saturating."""
    return torch.from_numpy(_nearest(x.double().numpy() / float(scale), E4M3[:127]) * float(scale)).to(x.dtype)


def nvfp4(x: Tensor, scale: Tensor) -> Tensor:
    """Blocks of 16 along the last dimension: E4M3 scale from each block's largest magnitude, in units of `scale`."""
    blocks = x.double().numpy().reshape(-1, 16)
    block_scale = _nearest(np.abs(blocks).max(1, keepdims=True) / (6 * float(scale)), E4M3[1:127]) * float(scale)
    return torch.from_numpy((_nearest(blocks / block_scale, E2M1[:8]) * block_scale).reshape(x.shape)).to(x.dtype)


def _nearest(x: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Nearest grid value in magnitude; halfway goes to the value with the even code (its index in a grid that starts at code 0)."""
    magnitude, first = np.abs(x), int(grid[0] > 0)
    above = np.clip(np.searchsorted(grid, magnitude), 1, len(grid) - 1)
    low, high = grid[above - 1], grid[above]
    up = (magnitude - low > high - magnitude) | ((magnitude - low == high - magnitude) & ((above + first) % 2 == 0))
    return np.copysign(np.where(up, high, low), x)
