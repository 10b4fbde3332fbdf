"""RMSNorm by the CPU build's own kernels.

Not a defect of results but of time: vllm/kernels/vllm_c.py:39 registers `_C.rms_norm` and `_C.fused_add_rms_norm` for GPUs only, though
the CPU build has both, so model_executor/layers/layernorm.py:74 (`RMSNorm.forward_native`) takes a dispatcher and seven operators of
torch a call, ten times what the kernel takes for one token. As on a GPU, the fused kernel writes into its arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.model_executor.layers.layernorm import RMSNorm

_LANES = 16  # the kernels read whole vectors


def mend() -> None:
    upstream = RMSNorm.forward_native

    def forward(self: RMSNorm, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        plain = self.has_weight and self.variance_size_override is None and x.dtype == self.weight.dtype and not x.shape[-1] % _LANES
        if not plain or not x.is_contiguous() or (residual is not None and (residual.dtype != x.dtype or not residual.is_contiguous())):
            return upstream(self, x, residual)
        if residual is None:
            out = torch.empty_like(x)
            torch.ops._C.rms_norm(out, x, self.weight, self.variance_epsilon)
            return out
        torch.ops._C.fused_add_rms_norm(x, residual, self.weight, self.variance_epsilon)
        return x, residual

    RMSNorm.forward_native = forward
