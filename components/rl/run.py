"""What every rank of the trainer runs: the stages in their order, then healing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from components.rl.acceptance import Acceptance
from components.rl.healing import heal
from components.rl.params import Params
from components.rl.sequence import ROLLOUTS, STAGES, train_stages
from stagecraft.checkpoint.canonical import read_checkpoint
from stagecraft.contract.runlog import RunLog
from stagecraft.engine import parallel
from stagecraft.engine.collectives import FirstRank
from stagecraft.engine.watchdog import group_timeout


@dataclass(frozen=True)
class Improved:
    """What became of the fine-tuned model.

    Attributes:
        weights: canonical tensors of the policy, its MTP block healed; on rank 0.
        judged: on rank 0, by stage, how often its reward model is right on held-out comparisons, where it has one.
        worth: of the MTP block's drafts: `before` reinforcement learning, after it (`rl`) and `healed`.
    """

    weights: dict[str, Tensor]
    judged: dict[str, float]
    worth: dict[str, Acceptance]


def improve(params: Params, corpus: Path, tuned: Path, work: Path, log: RunLog | None) -> Improved:
    """Run all stages and heal the MTP block.

    Args:
        corpus, tuned: artifacts; the latter is the fine-tuned model.
        work: the run's directory, which all ranks see.
        log: on rank 0 only.
    """
    parallel.join(group_timeout(params.hang_seconds))
    first = FirstRank()
    architecture, weights = read_checkpoint(tuned)
    policy, judged = train_stages(params, architecture, weights, corpus, tuned, work, first, log)
    worth, parts = {}, params.parts
    if params.healing.steps:
        started, last = next(iter(parts)), next(reversed(parts))
        policy, worth = heal(parts[last], architecture, weights, policy, *(work / STAGES / name / ROLLOUTS for name in (started, last)),
                             work, log)
    parallel.shutdown()
    return Improved(policy, judged, worth)
