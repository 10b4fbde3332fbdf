"""Rewards by preference: each completion of a group is compared with the next, in a circle, by a reward model behind an OpenAI endpoint."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Sequence

from components.rl.params import Preferences
from components.rl.rlhf.comparisons import BEST, WORST, question, verdict
from components.rl.rollouts import Sample
from stagecraft.contract.errors import UserError

Pair = tuple[str, str, str]  # request, first answer, second answer


class Judge:
    """Asks a generative reward model.

    Args:
        url: of the endpoint, such as http://localhost:8000/v1.
        model: its name there.

    Attributes:
        accuracy: share of held-out comparisons that it gets right; not a number before that is measured.
    """

    def __init__(self, preferences: Preferences, url: str, model: str):
        self.preferences, self.url, self.model, self.accuracy = preferences, url, model, math.nan

    def scores(self, pairs: Sequence[Pair]) -> list[tuple[int, int] | None]:
        """The scores of both answers of every pair; None where the verdict cannot be read.

        Raises:
            UserError: the endpoint does not answer.
        """
        return asyncio.run(self._ask(pairs))

    def reward(self, samples: list[Sample], generations: int) -> None:
        """Give every sample the mean of its two scores, in [0, 1], and the group's length penalty; `parts` keep what verifiers found.

        Of n completions of a prompt n pairs are compared, (1, 2), (2, 3), ..., (n, 1): each stands once first and once second, so that a
        judge that prefers a place favours nobody (arXiv 2604.12374, section 3.2). A verdict that cannot be read counts as a tie.
        """
        neighbours = [(at, at - at % generations + (at + 1) % generations) for at in range(len(samples))]
        found = self.scores([(samples[a].asked, samples[a].text, samples[b].text) for a, b in neighbours])
        tie = (WORST + BEST) / 2
        sums = [0.0] * len(samples)
        for (a, b), scores in zip(neighbours, found):
            first, second = scores or (tie, tie)
            sums[a] += first
            sums[b] += second
        for at, (sample, scores) in enumerate(zip(samples, found)):
            sample.parts = {**sample.parts, "verified": sample.reward, "verdict": float(scores is not None)}
            sample.reward = (sums[at] / 2 - WORST) / (BEST - WORST) if sample.finished else 0.0
        for start in range(0, len(samples), generations):
            group = samples[start:start + generations]
            for sample, more in zip(group, length_bonus([len(each.tokens) for each in group], self.preferences.length_penalty)):
                sample.reward += more

    async def _ask(self, pairs: Sequence[Pair]) -> list[tuple[int, int] | None]:
        from openai import AsyncOpenAI, OpenAIError

        asked, slots = self.preferences, asyncio.Semaphore(self.preferences.concurrency)
        key = os.environ.get(asked.key_variable, "none") if asked.key_variable else "none"

        async def one(client: AsyncOpenAI, pair: Pair) -> tuple[int, int] | None:
            request, *answers = pair
            async with slots:
                reply = await client.chat.completions.create(
                    model=self.model, temperature=0, max_tokens=asked.max_tokens,
                    messages=[{"role": "user", "content": question(asked.principle, request, answers)}])
            return verdict(reply.choices[0].message.content or "")

        try:
            async with AsyncOpenAI(base_url=self.url, api_key=key, timeout=asked.timeout_seconds, max_retries=3) as client:
                return await asyncio.gather(*(one(client, pair) for pair in pairs))
        except OpenAIError as error:
            raise UserError(f"the reward model does not answer: {error}", where=self.url,
                            mend="check rl.preferences.url, model and key_variable") from None


def length_bonus(lengths: Sequence[int], penalty: float) -> list[float]:
    """What brevity adds within a group: penalty x (mean length - length) / (longest - shortest); the sum is 0, lengths alike give 0."""
    spread, mean = max(lengths) - min(lengths), sum(lengths) / len(lengths)
    return [penalty * (mean - length) / spread if spread else 0.0 for length in lengths]
