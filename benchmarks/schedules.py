"""The schedule of a profile in fewer steps, for benchmarks that train several models."""

from __future__ import annotations

from dataclasses import replace

from components.pretrain.params import Params


def shortened(params: Params, steps: int) -> Params:
    """The same parameters over `steps` steps in one process, warm-up and decay in proportion."""
    return replace(params, steps=steps, warmup_steps=steps * params.warmup_steps // params.steps,
                   decay_steps=steps * params.decay_steps // params.steps, processes=1)
