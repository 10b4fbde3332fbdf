"""What every rank of test_layouts.py runs: the same updates under one layout after the other (tests/layouts.py)."""

import random
from dataclasses import replace
from pathlib import Path

from stagecraft.megatron_cpu import ON_CPU  # noqa: F401

import torch

from components.rl.acceptance import acceptance
from components.rl.lead import figures
from components.rl.loss import PolicyLoss
from components.rl.reference import Reference
from components.rl.rollouts import Sample, lessons, weigh
from components.rl.train import FROZEN, update
from stagecraft.engine import parallel
from stagecraft.engine.layout import Layout
from stagecraft.engine.trainer import Optimization, Trainer
from tests.architectures import tiny
from tests.layouts import tell
from tests.rl.test_prompts import PARAMS

SHAPES = tiny(hybrid_override_pattern="M*EME", num_attention_heads=4, num_key_value_heads=2, n_groups=4)
STEPS, DEPTHS = 3, 2
ASKED = replace(PARAMS, generations_per_prompt=4, kl=0.1, pack_tokens=64, max_prompt_tokens=16, max_new_tokens=48, mismatch_limit=1.8,
                malformed_penalty=0.0)


def samples_of(step: int) -> list[Sample]:
    """Five groups of four; some completions agree with the trainer by chance only, so that some are not trusted."""
    rng = random.Random(step)
    found = []
    for at in range(20):
        tokens = [rng.randrange(60) for _ in range(rng.randrange(2, 24))]
        said = [int(rng.random() < 0.9) for _ in tokens[1:]]
        found.append(Sample(str(at), "sort", "", [rng.randrange(60) for _ in range(rng.randrange(1, 12))], step, tokens=tokens,
                            mask=[1, *said], logprobs=[-rng.uniform(4.6, 6.4) * own for own in (1, *said)], finished=True,
                            reward=float(rng.random() < 0.5)))
    weigh(found, ASKED)
    return found


def answers(seed: int) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer), each counting up with leaps: a block that has learned to count foresees some of it."""
    rng = random.Random(f"answers/{seed}")
    found = []
    for _ in range(12):
        ids = [rng.randrange(60)]
        while len(ids) < 24:
            ids.append((ids[-1] + 1) % 60 if rng.random() < 0.8 else rng.randrange(60))
        cut = rng.randrange(2, 8)
        found.append((ids[:cut], ids[cut:rng.randrange(cut + 1, 25)]))
    return found


def run(weights: dict[str, torch.Tensor]) -> tuple[dict, dict[str, torch.Tensor]]:
    """Updates under the present layout, with a KL term; then what the MTP block foresees."""
    trainer = Trainer(SHAPES, Optimization(lr=2e-3, steps=STEPS), max_sequence_length=64, weights=weights, frozen=FROZEN,
                      expert_bias_rate=0.0, aux_loss=0.0)
    reference = Reference(SHAPES, weights, ASKED)
    loss = PolicyLoss(ASKED.temperature, 0.2, 0.28, ASKED.importance_limit, ASKED.mismatch_limit, ASKED.kl)
    told = {"steps": [figures(update(trainer, loss, lessons(samples_of(step), ASKED), ASKED, reference)) for step in range(STEPS)]}
    whole = trainer.weights()
    seeing = Trainer(SHAPES, Optimization(lr=1e-3, steps=1), max_sequence_length=64, weights=weights, mtp_depths=DEPTHS)
    found = acceptance(seeing, answers(0), 64)
    return told | {"foreseen": [*found.agreement, found.length]}, whole


def under(weights: dict[str, torch.Tensor], layout: dict[str, int], directory: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """`run` under a layout."""
    parallel.initialize(7, Layout(**layout))
    told = run(weights)
    parallel.leave_layout()
    return told


if __name__ == "__main__":
    tell(under)
