"""One step's completions: judged, kept as readable lines, turned into packs for the trainer."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from components.rl.advantage import group_advantages
from components.rl.loss import Rollout
from components.rl.params import Stage
from stagecraft.contract.files import write_atomic
from stagecraft.data.packing import pack_bins
from stagecraft.engine.batch import Batch
from stagecraft.engine.packs import own_packs, packed_batch


@dataclass
class Sample:
    """A completion, or a whole conversation with an environment, with its reward and its advantage within the group.

    Attributes:
        prompt, tokens: token ids.
        mask: 1 for those of `tokens` that the policy drew, 0 for what the environment said in between.
        logprobs: the generator's, of `tokens`; 0 where the mask is.
        finished: it ended by itself.
        malformed: its thinking cannot be read, or a tool call, or a call was invalid: of no tool, or against its schema.
        messages: of a conversation with an environment, all of them.
        version, newest: optimizer steps behind the weights that its batch was begun with, and behind those of its last token.
    """

    id: str
    family: str
    asked: str
    prompt: list[int]
    version: int
    tokens: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    malformed: bool = False
    reward: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    advantage: float = 0.0
    newest: int = 0

    @property
    def sequence(self) -> tuple[list[int], list[int]]:
        """(token ids, loss mask) of prompt and completion, as packs take them."""
        return self.prompt + self.tokens, [0] * len(self.prompt) + self.mask

    def record(self, step: int) -> dict[str, Any]:
        """The sample as a readable line."""
        return {"step": step, "id": self.id, "family": self.family, "prompt": self.asked, "completion": self.text,
                "finished": self.finished, "reward": self.reward, "parts": self.parts, "advantage": self.advantage,
                "versions": [self.version, self.newest],
                **({"messages": self.messages} if self.messages else {})}


@dataclass
class Draw:
    """The samples of a step or of a worker's share of it, and the seconds that drawing and judging them took."""

    samples: list[Sample]
    seconds: float


def weigh(samples: list[Sample], params: Stage) -> None:
    """Give every sample its advantage: within its group; the penalty in its place where it is malformed and there is one (as NeMo-RL's
    `malformed_thinking_advantage` and `invalid_tool_call_advantage`); 0 where the overlong filter leaves it out."""
    rewards = torch.tensor([float(sample.reward) for sample in samples]).view(-1, params.generations_per_prompt)
    for sample, advantage in zip(samples, group_advantages(rewards).flatten().tolist()):
        sample.advantage = -params.malformed_penalty if sample.malformed and params.malformed_penalty else advantage
        if _left_out(sample, params):
            sample.advantage = 0.0


def _left_out(sample: Sample, params: Stage) -> bool:
    return params.overlong_filter and not sample.finished


def merge(shares: Sequence[Draw]) -> Draw:
    """A step from the shares of its workers, in their order."""
    return Draw([sample for each in shares for sample in each.samples], max(each.seconds for each in shares))


def draw_path(kept: Path, step: int, worker: int = 0, workers: int = 1) -> Path:
    """Where a finished step is kept; where a worker's share of it is, if there are more."""
    return kept / (f"{step:08d}.jsonl" if workers == 1 else f"{step:08d}-{worker + 1}-of-{workers}.jsonl")


def write_draw(path: Path, draw: Draw) -> None:
    """Keep a finished step or share, a sample a line; a kill cannot leave half of it."""
    write_atomic(path, "".join(json.dumps({"seconds": draw.seconds, **vars(sample)}) + "\n" for sample in draw.samples))


def read_draw(path: Path) -> Draw | None:
    """A step or share that was kept; None if it was not."""
    if not path.exists():
        return None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    seconds = [line.pop("seconds") for line in lines]
    return Draw([Sample(**line) for line in lines], seconds[0])


def lessons(samples: list[Sample], params: Stage) -> list[Sample]:
    """What a trainer learns from: the samples with an advantage other than zero or, under a KL term, with a distance to the reference;
    no more of them than it reads."""
    return [replace(sample, asked="", text="", messages=[], parts={}) for sample in samples
            if sample.advantage or (params.kl and not _left_out(sample, params))]


def batches(samples: list[Sample], params: Stage) -> list[Batch]:
    """The samples in packs: this data-parallel rank's of them."""
    lengths = [len(sample.prompt) + len(sample.tokens) - 1 for sample in samples]
    return [_batch([samples[index] for index in pack]) for pack in own_packs(pack_bins(lengths, params.pack_tokens))]


def _batch(samples: list[Sample]) -> Batch:
    batch = packed_batch([sample.sequence for sample in samples])
    logprobs, advantages = batch.loss_mask.new_zeros(2, batch.tokens.shape[1])
    at = 0
    for sample in samples:
        at += len(sample.prompt) - 1
        own = slice(at, at := at + len(sample.tokens))
        logprobs[own] = logprobs.new_tensor(sample.logprobs)
        advantages[own] = sample.advantage * advantages.new_tensor(sample.mask)
    return replace(batch, extra=Rollout(logprobs, advantages))


def means_by_family(samples: list[Sample]) -> dict[str, float]:
    """Mean reward of each family, and of an environment each named part that its conversations have."""
    found: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        found[f"reward_{sample.family}"].append(sample.reward)
        for part, value in sample.parts.items() if sample.messages else ():
            found[f"part_{sample.family}_{part}"].append(value)
    return {name: sum(values) / len(values) for name, values in sorted(found.items())}
