"""One step's completions: drawn by the generator, judged by the environments, turned into packs for the trainer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch

from components.rl.advantage import group_advantages
from components.rl.loss import Rollout
from components.rl.params import Params
from stagecraft.data.chat import encode_prompt
from stagecraft.data.packing import pack_bins
from stagecraft.engine.packs import packed_batch
from stagecraft.engine.trainer import Batch
from stagecraft.environments import verify
from stagecraft.inference.engine import Completion, Engine


@dataclass
class Sample:
    """A completion with its reward and its advantage within the group."""

    row: dict[str, Any]
    prompt: list[int]
    completion: Completion
    text: str
    reward: float
    parts: dict[str, float]
    advantage: float = 0.0

    def record(self, step: int) -> dict[str, Any]:
        """The sample as a readable line."""
        return {"step": step, "id": self.row["id"], "family": self.row["family"], "prompt": self.row["messages"][-1]["content"],
                "completion": self.text, "finished": self.completion.finished, "reward": self.reward, "parts": self.parts,
                "advantage": self.advantage}


def draw(engine: Engine, tokenizer: Any, rows: list[dict[str, Any]], params: Params, seed: int) -> list[Sample]:
    """`generations_per_prompt` completions for every row, verified, with their group advantages."""
    prompts = [encode_prompt(tokenizer, row) for row in rows]
    groups = engine.generate(prompts, temperature=params.temperature, max_tokens=params.max_new_tokens, n=params.generations_per_prompt,
                             stop_token_ids=[tokenizer.eos_token_id], seed=seed, logprobs=True)
    samples = []
    for row, prompt, group in zip(rows, prompts, groups):
        for completion in group:
            ids = completion.token_ids[:-1] if completion.finished else completion.token_ids
            text = tokenizer.decode(ids)
            reward = verify(row, text, finished=completion.finished)
            samples.append(Sample(row, prompt, completion, text, reward.score, reward.parts))
    rewards = torch.tensor([sample.reward for sample in samples]).view(len(rows), -1)
    for sample, advantage in zip(samples, group_advantages(rewards).flatten().tolist()):
        sample.advantage = advantage
    return samples


def batches(samples: list[Sample], params: Params) -> list[Batch]:
    """Pack the samples that teach something (advantage other than zero)."""
    taught = [sample for sample in samples if sample.advantage]
    lengths = [len(sample.prompt) + len(sample.completion.token_ids) - 1 for sample in taught]
    return [_batch([taught[index] for index in bin_]) for bin_ in pack_bins(lengths, params.pack_tokens)]


def _batch(samples: list[Sample]) -> Batch:
    sequences, logprobs, advantages = [], [], []
    for sample in samples:
        silent, spoken = len(sample.prompt), len(sample.completion.token_ids)
        sequences.append((sample.prompt + sample.completion.token_ids, [0] * silent + [1] * spoken))
        logprobs += [0.0] * (silent - 1) + sample.completion.logprobs
        advantages += [0.0] * (silent - 1) + [sample.advantage] * spoken
    return packed_batch(sequences, Rollout(torch.tensor(logprobs), torch.tensor(advantages)))


def mean_reward_by_family(samples: list[Sample]) -> dict[str, float]:
    """Mean reward of each task family."""
    rewards: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        rewards[sample.row["family"]].append(sample.reward)
    return {family: sum(values) / len(values) for family, values in sorted(rewards.items())}
