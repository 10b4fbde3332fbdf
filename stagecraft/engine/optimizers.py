"""AdamW, and Muon for matrices, with the state layout of Transformer Engine's FusedAdam: one step count per parameter group."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

_MOMENTUM, _ITERATIONS = 0.95, 5


class FusedAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), over whole lists of tensors at once.

    A parameter with an attribute `muon` (the factor on the learning rate) takes Muon's step instead (Jordan et al. 2024): Nesterov
    momentum, orthogonalised. `exp_avg` is then the momentum; `exp_avg_sq` exists only because megatron-core's template of the
    state, from which checkpoints are loaded, has it for every parameter.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, adam_w_mode: bool = True, **unused: Any):
        if not adam_w_mode:
            raise NotImplementedError("only decoupled weight decay")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            group["step"] = group.get("step", 0) + 1
            self._initialise(weights)
            self._adam(group, [p for p in weights if not hasattr(p, "muon")])
            self._muon(group, [p for p in weights if hasattr(p, "muon")])

    def initialise_state(self) -> None:
        """Give every parameter its (zero) state: a checkpoint taken before the first step then has what loading it expects."""
        for group in self.param_groups:
            self._initialise(group["params"])

    def _initialise(self, weights: Sequence[Tensor]) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}

    def _adam(self, group: dict[str, Any], weights: Sequence[Tensor]) -> None:
        if not weights:
            return
        gradients = [p.grad for p in weights]
        means = [self.state[p]["exp_avg"] for p in weights]
        squares = [self.state[p]["exp_avg_sq"] for p in weights]
        steps = [torch.full((), float(group["step"]), device=weights[0].device)] * len(weights)
        torch._fused_adamw_(weights, gradients, means, squares, [], steps, lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1],
                            weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False)

    def _muon(self, group: dict[str, Any], weights: Sequence[Tensor]) -> None:
        for weight in weights:
            momentum = self.state[weight]["exp_avg"].lerp_(weight.grad, 1 - _MOMENTUM)
            direction = orthogonalise(weight.grad.lerp(momentum, _MOMENTUM))
            rate = group["lr"] * weight.muon
            weight.mul_(1 - rate * group["weight_decay"])
            weight.add_(direction, alpha=-rate * math.sqrt(max(1.0, weight.shape[-2] / weight.shape[-1])))


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values end near one.

    Five Newton-Schulz iterations of the quintic of Jordan et al. (2024, "Muon: an optimizer for hidden layers"), in the matrix's
    dtype. Shape [rows, columns] or [..., rows, columns].
    """
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = matrix if wide else matrix.transpose(-1, -2)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.transpose(-1, -2)
        x = 3.4445 * x + (2.0315 * (gram @ gram) - 4.7750 * gram) @ x
    return x if wide else x.transpose(-1, -2)
