"""Mamba-2 in plain PyTorch: the two kernels that megatron-core's MambaMixer takes from mamba_ssm, for hosts without it.

State space duality in chunks (Dao and Gu 2024, arXiv 2405.21060, section 6 and listing 1), with sequence boundaries: where
`seq_idx` changes, neither the convolution nor the state reaches across. Letters: b batch, l length, c chunks, q chunk size,
h heads, g groups, r heads per group, p head size, n state size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecraft.model import scan
from stagecraft.model.norm import rms_norm


def causal_conv(x_BLD: Tensor, weight_DW: Tensor, bias_D: Tensor, seq_idx_BL: Tensor | None = None) -> Tensor:
    """Depthwise causal convolution that starts anew at every sequence boundary; shape and dtype of `x_BLD`."""
    width, length = weight_DW.shape[1], x_BLD.shape[1]
    y = bias_D + weight_DW[:, -1] * x_BLD
    for back in range(1, min(width, length)):
        past = x_BLD[:, :-back]
        if seq_idx_BL is not None:
            past = past * (seq_idx_BL[:, back:] == seq_idx_BL[:, :-back]).unsqueeze(-1)
        y = y + F.pad(weight_DW[:, -1 - back] * past, (0, 0, back, 0))
    return y


def chunked_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk_size: int,
                 seq_idx: Tensor | None = None) -> Tensor:
    """y_t = C_t h_t + D x_t with h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, and h = 0 before each sequence.

    Args:
        x: [b, l, h, p]. dt: [b, l, h], after softplus. A: [h], negative. B, C: [b, l, g, n]. D: [h]. All float32.
        chunk_size: tokens per chunk; within one the work is matrix products, between them a decay-weighted sum.
        seq_idx: [b, l] integers, equal within a sequence and different in neighbours; None is one sequence per row.

    Returns:
        [b, l, h, p] float32.
    """
    b, length, h, p = x.shape
    g, n = B.shape[2:]
    r, q = h // g, min(chunk_size, length)
    pad = -length % q
    skip = x * D.view(h, 1)
    if pad:
        x, B, C = (F.pad(t, (0, 0, 0, 0, 0, pad)) for t in (x, B, C))
        dt = F.pad(dt, (0, 0, 0, pad))
        if seq_idx is not None:
            seq_idx = F.pad(seq_idx, (0, pad), value=-1)
    c = x.shape[1] // q
    X = (x * dt.unsqueeze(-1)).view(b, c, q, g, r, p).permute(0, 1, 3, 4, 2, 5)  # b c g r q p
    dA = (dt * A).view(b, c, q, g, r).permute(0, 1, 3, 4, 2)  # b c g r q
    Bc = B.view(b, c, q, g, n).permute(0, 1, 3, 2, 4)  # b c g q n
    Cc = C.view(b, c, q, g, n).permute(0, 1, 3, 2, 4)
    within = dA.cumsum(-1)

    visible = torch.ones(q, q, dtype=torch.bool, device=x.device).tril()
    if seq_idx is not None:
        s = seq_idx.view(b, c, q)
        visible = visible & (s.unsqueeze(-1) == s.unsqueeze(-2))[:, :, None, None]
    decay = (within.unsqueeze(-1) - within.unsqueeze(-2)).masked_fill(~visible, float("-inf")).exp()
    scores = (Cc @ Bc.transpose(-1, -2)).unsqueeze(3) * decay  # b c g r q q
    y = scores @ X

    if c > 1:
        to_end = (within[..., -1:] - within).exp()
        from_start = within.exp()
        # Sums over many chunks are differenced below: in float64 their rounding stays under that of the products.
        total = within[..., -1].double().cumsum(1).permute(0, 2, 3, 1)  # b g r c
        before = F.pad(total, (1, 0))[..., :-1]
        earlier = torch.ones(c, c, dtype=torch.bool, device=x.device).tril(-1)
        if seq_idx is not None:
            last = s[..., -1]
            into = F.pad(last, (1, 0), value=-2)[:, :-1]  # the sequence that reaches into a chunk from its left
            to_end = to_end * (s == last.unsqueeze(-1))[:, :, None, None]
            from_start = from_start * (s == into.unsqueeze(-1))[:, :, None, None]
            earlier = earlier & (into.unsqueeze(-1) == last.unsqueeze(-2))[:, None, None]
        between = (before.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(~earlier, float("-inf")).exp().to(x.dtype)  # b g r c c
        states = Bc.unsqueeze(3).transpose(-1, -2) @ (X * to_end.unsqueeze(-1))  # b c g r n p
        entering = (between @ states.permute(0, 2, 3, 1, 4, 5).reshape(b, g, r, c, n * p)).view(b, g, r, c, n, p).permute(0, 3, 1, 2, 4, 5)
        y = y + (Cc.unsqueeze(3) @ entering) * from_start.unsqueeze(-1)
    return y.permute(0, 1, 4, 2, 3, 5).reshape(b, c * q, h, p)[:, :length] + skip


def split_conv_scan(zxbcdt: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, chunk_size: int, *,
                    seq_idx: Tensor | None = None, activation: str = "silu", headdim: int | None = None, ngroups: int = 1,
                    norm_before_gate: bool = False, state_dtype: torch.dtype | None = None) -> Tensor:
    """What mamba_ssm's `mamba_split_conv1d_scan_combined` computes without a fused norm: y * silu(z).

    Args:
        zxbcdt: [b, l, 2 h p + 2 g n + h], the input projection: gate, x, B, C, time step.
        seq_idx: [1, l] or [b, l]; see `chunked_scan`. The other arguments are mamba_ssm's.

    Returns:
        [b, l, h p], dtype of `zxbcdt`; the scan itself runs in float32.
    """
    if norm_before_gate or activation != "silu" or headdim is None:
        raise NotImplementedError("Nemotron-H gates with silu after the scan and normalises after the gate")
    b, length, width = zxbcdt.shape
    h = dt_bias.numel()
    inner = h * headdim
    n = (width - 2 * inner - h) // (2 * ngroups)
    if zxbcdt.device.type == "cpu" and scan.library() is not None:
        rows = seq_idx if seq_idx is None else seq_idx.long().expand(b, length).contiguous()
        weights = (t.float() for t in (conv1d_weight, conv1d_bias, dt_bias, A, D))
        return scan.ConvScan.apply(zxbcdt.float(), *weights, rows, (headdim, ngroups)).to(zxbcdt.dtype)
    z, xbc, dt = zxbcdt.split([inner, inner + 2 * ngroups * n, h], -1)
    x, B, C = F.silu(causal_conv(xbc, conv1d_weight, conv1d_bias, seq_idx)).split([inner, ngroups * n, ngroups * n], -1)
    B, C = (t.float().view(b, length, ngroups, n) for t in (B, C))
    dt = F.softplus(dt.float() + dt_bias)
    y = chunked_scan(x.float().view(b, length, h, headdim), dt, A.float(), B, C, D.float(), chunk_size, seq_idx)
    return y.to(zxbcdt.dtype).reshape(b, length, inner) * F.silu(z)


class GatedRMSNorm(nn.Module):
    """RMSNorm over groups of features (mamba_ssm's `RMSNorm` with `norm_before_gate=False`)."""

    def __init__(self, hidden_size: int, eps: float = 1e-5, group_size: int | None = None, norm_before_gate: bool = False,
                 device: torch.device | None = None, dtype: torch.dtype | None = None):
        super().__init__()
        self.eps, self.group = eps, group_size or hidden_size
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        if z is not None:
            x = x * F.silu(z)
        return rms_norm(x, self.weight, self.eps, len(self.weight) // self.group)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        from megatron.core import parallel_state
        from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint

        metadata = ensure_metadata_has_dp_cp_group(metadata)
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True), prefix, {"weight": 0}, sharded_offsets,
            tp_group=parallel_state.get_tensor_model_parallel_group(), dp_cp_group=metadata["dp_cp_group"])
