"""Run by a Python that has Transformer Engine, on a machine without a GPU (tests/model/test_transformer_engine.py): builds its layers.

What a driver would say is said here: the compute capability of Blackwell, and, once stagecraft has seen that there is none, that
CUDA is available. Nothing is multiplied.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

torch.cuda.get_device_capability = lambda device=None: (10, 0)
torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(major=10, minor=0, multi_processor_count=148, name="none")

import stagecraft.megatron_cpu  # noqa: E402, F401

from megatron.core.extensions.transformer_engine import TEGroupedLinear, TELinear  # noqa: E402

torch.cuda.is_available = lambda: True

from stagecraft.engine import checkpoints, parallel  # noqa: E402
from stagecraft.engine.trainer import Optimization, Trainer  # noqa: E402
from stagecraft.model.ladder import check, format_in  # noqa: E402
from tests.architectures import architecture  # noqa: E402


def built(precision, weights=None, seed=0, **options):
    """A trainer of a model with an MTP block."""
    parallel.initialize(seed)
    return Trainer(architecture(mamba_num_heads=16, mamba_head_dim=16), Optimization(lr=1e-3, steps=10), max_sequence_length=256,
                   weights=weights, precision=precision, dtype=torch.bfloat16, mtp_depths=2, **options)


def equal(some, others):
    """Whether two checkpoints hold the same bits."""
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


directory, precisions = Path(sys.argv[1]), sys.argv[2:]
weights = built("bf16", transformer_engine=False).weights()
for precision in precisions:
    trainer = built(precision, weights, transformer_engine=True)
    check(trainer.module, trainer.config.quant_recipe)
    layers = [module for module in trainer.module.modules() if isinstance(module, TELinear | TEGroupedLinear)]
    assert any(isinstance(layer, TEGroupedLinear) for layer in layers)
    for layer in layers:  # within the context that megatron-core opens around the layers
        assert layer.train().will_execute_quantized(True) == (format_in(layer) is not None)
        assert not layer.eval().will_execute_quantized(True)
    assert equal(trainer.weights(), weights)

    checkpoints.save(directory / precision, trainer)
    resumed = built(precision, seed=1, transformer_engine=True)
    assert not equal(resumed.weights(), weights)
    checkpoints.resume(directory / precision, resumed)
    assert equal(resumed.weights(), weights)
    print(precision, *sorted({format_in(layer) or "bf16" for layer in layers}))
