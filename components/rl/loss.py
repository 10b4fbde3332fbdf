"""The clipped policy-gradient loss with truncated importance sampling between trainer and generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import stagecraft.megatron_cpu  # noqa: F401

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from stagecraft.engine.batch import Batch
from stagecraft.model.vocabulary import losses_and_entropies


@dataclass
class Rollout:
    """What the loss needs besides the tokens, for every place of a pack [t]; zero where there is no completion token."""

    generator_logprobs: Tensor
    advantages: Tensor
    reference_logprobs: Tensor | None = None

    def part(self, places: Tensor) -> Rollout:
        """What a context-parallel rank has of it."""
        return Rollout(*(each if each is None else each[places] for each in vars(self).values()))


def clipped_objective(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """min(r A, clip(r, 1 - low, 1 + high) A) (PPO, arXiv 1707.06347, equation 7; two limits: DAPO, arXiv 2503.14476, equation 10)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def importance_weight(trainer_logprob: Tensor, generator_logprob: Tensor, limit: float) -> Tensor:
    """min(trainer probability / generator probability, limit): truncated importance sampling (Ionides 2008), per token."""
    return (trainer_logprob - generator_logprob).exp().clamp(max=limit)


def kl_estimate(logprob: Tensor, reference_logprob: Tensor) -> Tensor:
    """KL(policy || reference) of a token that the policy drew: q - ln q - 1 with q = reference / policy probability.

    Never negative, unbiased (Schulman, "Approximating KL divergence", 2020, estimator k3; DeepSeekMath, arXiv 2402.03300, equation 4).
    """
    difference = reference_logprob - logprob
    return difference.exp() - difference - 1


def trusted(trainer_logprob: Tensor, generator_logprob: Tensor, sequence: Tensor, sequences: int, limit: float) -> Tensor:
    """[sequences] bool: the mean over a completion's tokens of exp |difference of the two log-probabilities| is at most `limit`.

    The measure of NeMo-RL's `seq_logprob_error_threshold`; 1 is perfect agreement. Of the tokens every context-parallel rank has its own.
    """
    factor = (trainer_logprob - generator_logprob).abs().exp()
    sums = factor.new_zeros(2, sequences).index_add(1, sequence, torch.stack([factor, torch.ones_like(factor)]))
    if (group := parallel_state.get_context_parallel_group()).size() > 1:
        dist.all_reduce(sums, group=group)
    return sums[0] <= limit * sums[1]


@dataclass(frozen=True)
class PolicyLoss:
    """Token-level GRPO loss (arXiv 2604.12374, section 3.2), called on the logits of one pack.

    Per token, with r the probability ratio to the policy that is being updated from (its own value, without gradient, at the
    one update that a batch is used for: r = 1), A the advantage and w = min(trainer probability / generator probability,
    importance_limit): loss = -w min(r A, clip(r, 1 - low, 1 + high) A) + kl_weight KL to the reference. Summed; the engine divides by
    the number of tokens of the step. A completion that `trusted` does not trust is left out.
    """

    REPORTED: ClassVar = ("mismatch", "entropy", "importance", "masked", "kl")

    temperature: float
    ratio_clip_low: float
    ratio_clip_high: float
    importance_limit: float
    mismatch_limit: float
    kl_weight: float = 0.0

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """logits [1, t, this rank's vocabulary] -> (summed loss, tokens in it, sums over the completion tokens of the figures reported)."""
        rollout: Rollout = batch.extra
        spoken = batch.loss_mask[0] > 0
        scaled = logits[0, spoken] if self.temperature == 1 else logits[0, spoken].float() / self.temperature
        loss, entropy = losses_and_entropies(scaled, batch.labels[0, spoken])
        logprobs = -loss
        generator, advantage = rollout.generator_logprobs[spoken], rollout.advantages[spoken]
        frozen = logprobs.detach()
        sequence = batch.packed.sequence[spoken]
        kept = trusted(frozen, generator, sequence, len(batch.packed.lengths), self.mismatch_limit)[sequence].float()
        weight = importance_weight(frozen, generator, self.importance_limit)
        objective = clipped_objective((logprobs - frozen).exp(), advantage, self.ratio_clip_low, self.ratio_clip_high)
        drift = torch.zeros_like(logprobs)
        if rollout.reference_logprobs is not None:
            drift = kl_estimate(logprobs, rollout.reference_logprobs[spoken])
        loss = (kept * (self.kl_weight * drift - weight * objective)).sum()
        with torch.no_grad():
            figures = {"spoken": spoken.sum().float(), "mismatch": (frozen - generator).abs().sum(), "importance": weight.sum(),
                       "entropy": entropy.sum(), "masked": (1 - kept).sum(), "kl": drift.sum()}
        return loss, kept.sum(), figures
