"""The layer spec's building blocks: this package's, which emulate number formats on any device, or Transformer Engine's, for GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

from stagecraft.model.experts import GroupedExperts
from stagecraft.model.layers import DuplicatedLinear, QuantizedColumnParallelLinear, QuantizedRowParallelLinear, RMSNorm


@dataclass(frozen=True)
class Parts:
    """Classes, or what builds them; linear layers by how tensor parallelism cuts them."""

    norm: Any
    column: Any
    row: Any
    duplicated: Any
    experts: Any


LOCAL = Parts(norm=RMSNorm, column=QuantizedColumnParallelLinear, row=QuantizedRowParallelLinear, duplicated=DuplicatedLinear,
              experts=GroupedExperts)


def of_transformer_engine() -> Parts:
    """megatron-core's wrappers of Transformer Engine's modules, norms apart from linear layers: tensors have the names of `LOCAL`'s.

    Raises:
        ImportError: Transformer Engine is not installed.
    """
    from megatron.core.extensions import transformer_engine as te
    from megatron.core.transformer.moe.experts import GroupedMLPSubmodules, TEGroupedMLP

    if not te.HAVE_TE:
        raise ImportError("Transformer Engine is not installed")
    return Parts(norm=te.TENorm, column=te.TEColumnParallelLinear, row=te.TERowParallelLinear, duplicated=te.TELinear,
                 experts=partial(TEGroupedMLP, submodules=GroupedMLPSubmodules(
                     linear_fc1=te.TEColumnParallelGroupedLinear, linear_fc2=te.TERowParallelGroupedLinear)))
