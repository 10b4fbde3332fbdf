"""Losses of a small model's first training steps on one batch, as JSON: tests compare devices and engines by them.

    python -m tests.model.few_steps DTYPE PRECISION [transformer_engine]

Without a GPU, or with CUDA_VISIBLE_DEVICES empty, on the CPU. The weights are the same everywhere: they are drawn by numpy.
"""

import json
import sys

import stagecraft.megatron_cpu  # noqa: F401

import numpy as np
import torch

from stagecraft.engine import parallel
from stagecraft.engine.batch import Batch
from stagecraft.engine.trainer import Optimization, Trainer
from tests.architectures import architecture

STEPS = 8


def main() -> None:
    dtype, precision, *engine = sys.argv[1:]
    shapes = architecture(mamba_num_heads=16, mamba_head_dim=32, ssm_state_size=64, chunk_size=64)
    options = {"max_sequence_length": 256, "precision": precision, "dtype": getattr(torch, dtype), "mtp_depths": 2,
               "transformer_engine": "transformer_engine" in engine}
    parallel.initialize(0)
    drawn = np.random.default_rng(0)
    weights = {}
    for name, tensor in Trainer(shapes, Optimization(lr=1e-3, steps=20), **options).weights().items():
        varied = torch.from_numpy(drawn.standard_normal(tensor.shape, dtype=np.float32)) * shapes.initializer_range
        weights[name] = (varied if tensor.dim() > 1 and "conv1d" not in name else tensor.cpu().float()).to(tensor.dtype)
        if name.endswith("dt_bias"):
            weights[name] = torch.linspace(-4, -1, tensor.numel()).to(tensor.dtype)
        if "conv1d.weight" in name:
            weights[name] = (varied * 5).to(tensor.dtype)
    trainer = Trainer(shapes, Optimization(lr=1e-3, steps=20), weights=weights, **options)
    rows = torch.from_numpy(drawn.integers(0, shapes.vocab_size, (4, 257)))
    batch = Batch(*(part.to(torch.cuda.current_device()) for part in (rows[:, :-1], rows[:, 1:], torch.ones(4, 256))))
    print(json.dumps([trainer.step([batch]).loss for _ in range(STEPS)]))
    parallel.shutdown()


if __name__ == "__main__":
    main()
