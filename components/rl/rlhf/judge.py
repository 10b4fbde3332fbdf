"""Rewards by preference: each completion of a group is compared with the next, in a circle, by a reward model behind an OpenAI endpoint."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from components.rl.params import Preferences
from components.rl.rlhf.comparisons import BEST, FORM, WORST, question, verdict
from components.rl.rollouts import Sample
from stagecraft.endpoint import Endpoint

_MAX_RETRIES = 3
Pair = tuple[str, str, str]  # request, first answer, second answer


class Judge:
    """Asks a generative reward model.

    Args:
        preferences: `url` and `model` are those of the model, wherever it was trained.
        taught: it was trained here, on questions that do not say in which form to answer.

    Attributes:
        accuracy: share of held-out comparisons that it gets right; not a number before that is measured.

    Raises:
        UserError: the variable named for the key is not set.
    """

    def __init__(self, preferences: Preferences, taught: bool = False):
        self.preferences, self.accuracy, self._form = preferences, math.nan, "" if taught else FORM
        self._endpoint = Endpoint(preferences, "rl.preferences", "a reward model trained here", _MAX_RETRIES)

    def scores(self, pairs: Sequence[Pair]) -> list[tuple[int, int] | None]:
        """The scores of both answers of every pair; None where the verdict cannot be read.

        Raises:
            UserError: as `Endpoint.failures`.
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
        from openai import AsyncOpenAI

        asked, slots = self.preferences, asyncio.Semaphore(self.preferences.concurrency)

        async def one(client: AsyncOpenAI, pair: Pair) -> tuple[int, int] | None:
            request, *answers = pair
            async with slots:
                with self._endpoint.failures():
                    reply = await client.chat.completions.create(
                        model=asked.model, temperature=0, max_tokens=asked.max_tokens,
                        messages=[{"role": "user", "content": question(asked.principle, request, answers, self._form)}])
                    return verdict(reply.choices[0].message.content or "")

        async with AsyncOpenAI(**self._endpoint.client) as client:
            return await asyncio.gather(*(one(client, pair) for pair in pairs))


def length_bonus(lengths: Sequence[int], penalty: float) -> list[float]:
    """What brevity adds within a group: penalty x (mean length - length) / (longest - shortest); the sum is 0, lengths alike give 0."""
    spread, mean = max(lengths) - min(lengths), sum(lengths) / len(lengths)
    return [penalty * (mean - length) / spread if spread else 0.0 for length in lengths]
