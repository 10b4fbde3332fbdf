"""AdamW with the state layout of Transformer Engine's FusedAdam: the step count is one per parameter group, not one per tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch


class FusedAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019) over whole lists of tensors at once."""

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
            group["step"] = step = group.get("step", 0) + 1
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight] = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
            gradients = [p.grad for p in weights]
            means = [self.state[p]["exp_avg"] for p in weights]
            squares = [self.state[p]["exp_avg_sq"] for p in weights]
            beta1, beta2 = group["betas"]
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_lerp_(means, gradients, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
            scale = torch._foreach_sqrt(squares)
            torch._foreach_div_(scale, math.sqrt(1 - beta2**step))
            torch._foreach_add_(scale, group["eps"])
            torch._foreach_addcdiv_(weights, means, scale, -group["lr"] / (1 - beta1**step))
