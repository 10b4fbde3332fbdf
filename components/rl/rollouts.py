"""One step's completions: judged, kept as readable lines, turned into packs for the trainer."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from components.rl.advantage import group_advantages
from components.rl.loss import Rollout
from components.rl.params import Params
from stagecraft.contract.files import write_atomic
from stagecraft.data.packing import pack_bins
from stagecraft.engine.packs import packed_batch
from stagecraft.engine.trainer import Batch


@dataclass
class Sample:
    """A completion with its reward and its advantage within the group.

    Attributes:
        prompt, tokens: token ids; `logprobs` are the generator's, of `tokens`.
        finished: it ended by itself.
        malformed: its thinking cannot be read, or the tool call that was asked for.
        version: optimizer steps behind the weights that its batch was begun with.
    """

    id: str
    family: str
    asked: str
    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    text: str
    finished: bool
    malformed: bool
    reward: float
    parts: dict[str, float]
    version: int
    advantage: float = 0.0

    def record(self, step: int) -> dict[str, Any]:
        """The sample as a readable line."""
        return {"step": step, "id": self.id, "family": self.family, "prompt": self.asked, "completion": self.text,
                "finished": self.finished, "reward": self.reward, "parts": self.parts, "advantage": self.advantage}


@dataclass
class Draw:
    """The samples of a step, and the seconds that drawing and judging them took."""

    samples: list[Sample]
    seconds: float


def weigh(samples: list[Sample], params: Params) -> None:
    """Give every sample its advantage: within its group; the penalty in its place where it is malformed and there is one (as NeMo-RL's
    `malformed_thinking_advantage` and `invalid_tool_call_advantage`); 0 where the overlong filter leaves it out."""
    rewards = torch.tensor([float(sample.reward) for sample in samples]).view(-1, params.generations_per_prompt)
    for sample, advantage in zip(samples, group_advantages(rewards).flatten().tolist()):
        sample.advantage = -params.malformed_penalty if sample.malformed and params.malformed_penalty else advantage
        if params.overlong_filter and not sample.finished:
            sample.advantage = 0.0


def draw_path(kept: Path, step: int) -> Path:
    """Where a finished step is kept."""
    return kept / f"{step:08d}.jsonl"


def write_draw(path: Path, draw: Draw) -> None:
    """Keep a finished step, a sample a line; a kill cannot leave half of it."""
    write_atomic(path, "".join(json.dumps({"seconds": draw.seconds, **vars(sample)}) + "\n" for sample in draw.samples))


def read_draw(path: Path) -> Draw | None:
    """A step that was kept; None if it was not."""
    if not path.exists():
        return None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    seconds = [line.pop("seconds") for line in lines]
    return Draw([Sample(**line) for line in lines], seconds[0])


def batches(samples: list[Sample], params: Params) -> list[Batch]:
    """Pack the samples that teach something (advantage other than zero)."""
    taught = [sample for sample in samples if sample.advantage]
    lengths = [len(sample.prompt) + len(sample.tokens) - 1 for sample in taught]
    return [_batch([taught[index] for index in bin_]) for bin_ in pack_bins(lengths, params.pack_tokens)]


def _batch(samples: list[Sample]) -> Batch:
    sequences, logprobs, advantages = [], [], []
    for sample in samples:
        silent, spoken = len(sample.prompt), len(sample.tokens)
        sequences.append((sample.prompt + sample.tokens, [0] * silent + [1] * spoken))
        logprobs += [0.0] * (silent - 1) + sample.logprobs
        advantages += [0.0] * (silent - 1) + [sample.advantage] * spoken
    return packed_batch(sequences, Rollout(torch.tensor(logprobs), torch.tensor(advantages)))


def mean_reward_by_family(samples: list[Sample]) -> dict[str, float]:
    """Mean reward of each task family."""
    rewards: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        rewards[sample.family].append(sample.reward)
    return {family: sum(values) / len(values) for family, values in sorted(rewards.items())}
