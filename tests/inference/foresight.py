"""A random checkpoint whose MTP block foresees it: its drafts are accepted at times, to a depth of three and more.

What a layer adds to the residual stream is made small, so that the next token hangs mostly on the last one; and the block hands on
that token's embedding, which is what the rest of the model mostly does. A random block's drafts are hardly ever accepted: with it
a test of speculative decoding sees little but rejections.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import tiny_checkpoint

OUTWARD = ("out_proj.weight", "o_proj.weight", "down_proj.weight", "fc2_latent_proj.weight")


def foreseeing_checkpoint(directory: Path, share: float = 0.3, **overrides: object) -> Path:
    """Write it; `share` scales what the layers add, and so how often the block is wrong; `overrides` are of `tiny_checkpoint`."""
    tiny_checkpoint(directory, **overrides)
    path = directory / "model.safetensors"
    weights = load_file(path)
    for name, weight in weights.items():
        if name.endswith(OUTWARD):
            weight *= 0.0 if name.startswith("mtp.") else share
    projection = weights["mtp.layers.0.eh_proj.weight"]
    projection.zero_()
    projection[:, :len(projection)] = torch.eye(len(projection))  # the embedding comes before the hidden state
    save_file(weights, path, metadata={"format": "pt"})
    return directory
