"""The health of a training run in numbers: zero gradients, what rounding loses, how evenly the routers load their experts.

Every `every` steps, from what is at hand: gradients after their reduction, the routers' own counts, the operands as they are
rounded. The ranks' numbers meet in one sum, so a figure is that of the whole model and the global batch. (An operand that tensor-parallel
ranks share is rounded by each of them, and counts as often.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor, nn

from stagecraft.model.classes import CLASSES, class_of
from stagecraft.model.config import Architecture
from stagecraft.model.losses import COUNTS, LOSSES, OPERANDS


class Diagnostics:
    """Looks at every `every`-th step of a model on this rank.

    Args:
        in_the_model: gives a parameter's or module's name in the whole model for its name on this pipeline stage.
        every: steps between looks; 0 for none.
    """

    def __init__(self, architecture: Architecture, module: nn.Module, in_the_model: Callable[[str], str], every: int):
        self.every, self.looking = every, False
        self.gradients = [(CLASSES.index(name), parameter, 1 / copies(parameter)) for path, parameter in module.named_parameters()
                          if parameter.dim() > 1 and (name := class_of(path))]
        places = {f"decoder.layers.{at}.mlp.router": row for row, at in enumerate(
            at for at, letter in enumerate(architecture.hybrid_override_pattern) if letter == "E")}
        mtp = architecture.mtp_hybrid_override_pattern
        places |= {f"mtp.layers.0.mtp_model_layer.layers.{at}.mlp.router": len(places) + row for row, at in enumerate(
            at for at, letter in enumerate(mtp) if letter == "E")}
        self.routers = [(places[name], router) for path, router in module.named_modules() if (name := in_the_model(path)) in places]
        self.zeros = torch.zeros(len(CLASSES), 2, dtype=torch.float64)
        self.load = torch.zeros(len(places), architecture.n_routed_experts, dtype=torch.float64)

    def begin(self, step: int) -> None:
        """Called before step `step` (counted from 1)."""
        self.looking = bool(self.every) and step % self.every == 0
        LOSSES.watch(self.looking)

    def around(self, finalize: Callable[..., None]) -> Callable[..., None]:
        """`finalize_model_grads`, with a look at the routers' counts before it, which resets them, and at the gradients after it."""
        def finalize_and_look(*args: Any, **kwargs: Any) -> None:
            if self.looking:
                self.load.zero_()
                for row, router in self.routers:
                    self.load[row] = router.local_tokens_per_expert
            finalize(*args, **kwargs)
            if self.looking:
                self.zeros.zero_()
                for row, parameter, share in self.gradients:
                    gradient = getattr(parameter, "main_grad", None)
                    if gradient is not None:
                        zeros = gradient.numel() - int(gradient.count_nonzero())
                        self.zeros[row] += share * torch.tensor([zeros, gradient.numel()], dtype=torch.float64)

        return finalize_and_look

    def end(self) -> dict[str, float]:
        """The figures of the step, the same on every rank; empty if it was not looked at. A class without a value has no figure.

        zero gradients/CLASS: share of the elements of the weight gradients that are zero.
        flushed/CLASS/OPERAND, saturated/CLASS/OPERAND: shares of the operand's non-zero elements that rounding makes zero, and cuts.
        load/max: tokens of the busiest expert over the mean, in the worst layer; load/entropy: of the share of tokens by expert over
            that of equal shares, mean over layers; load/idle: share of experts without a token.
        """
        if not self.looking:
            return {}
        lost = torch.zeros(len(CLASSES), len(OPERANDS), len(COUNTS), dtype=torch.float64)
        for (layer, operand), counts in LOSSES.counts.items():
            lost[CLASSES.index(layer), OPERANDS.index(operand)] = counts
        LOSSES.watch(False)
        self.looking = False
        parts = (self.zeros, lost, self.load)
        total = torch.cat([part.flatten() for part in parts]).to(torch.cuda.current_device())
        dist.all_reduce(total)
        zeros, lost, load = (flat.view(part.shape) for part, flat in zip(parts, total.cpu().split([part.numel() for part in parts])))
        figures = {f"zero gradients/{name}": float(row[0] / row[1]) for name, row in zip(CLASSES, zeros) if row[1]}
        for name, operands in zip(CLASSES, lost):
            for operand, (nonzero, flushed, saturated) in zip(OPERANDS, operands.tolist()):
                if nonzero:
                    figures[f"flushed/{name}/{operand}"] = flushed / nonzero
                    figures[f"saturated/{name}/{operand}"] = saturated / nonzero
        return {**figures, **_balance(load[load.sum(1) > 0])}


def copies(parameter: nn.Parameter) -> int:
    """How many ranks hold this part of a parameter, and its whole gradient."""
    if not getattr(parameter, "allreduce", True):  # megatron-core's mark of an expert's
        return parallel_state.get_expert_data_parallel_world_size()
    tensor = 1 if getattr(parameter, "tensor_model_parallel", False) else parallel_state.get_tensor_model_parallel_world_size()
    return tensor * parallel_state.get_data_parallel_world_size(with_context_parallel=True)


def _balance(load: Tensor) -> dict[str, float]:
    """Of tokens by layer and expert [layers, experts]."""
    if not len(load):
        return {}
    share = load / load.sum(1, keepdim=True)
    entropy = torch.special.entr(share).sum(1) / math.log(load.shape[1])
    idle = (load == 0).double().mean()
    return {"load/max": float(share.max() * load.shape[1]), "load/entropy": float(entropy.mean()), "load/idle": float(idle)}
