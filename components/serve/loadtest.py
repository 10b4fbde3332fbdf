"""A load test: some clients at once, streaming, every answer of the same length; what they waited and what they got."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Any

import numpy as np
from httpx import Limits
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from components.serve.checks import CheckFailedError
from components.serve.params import Load

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Request:
    """One streamed answer: seconds until its first token, between each two pieces, until its end; and its number of tokens."""

    first: float
    between: list[float]
    whole: float
    tokens: int


def measure(url: str, model: str, rows: Sequence[dict[str, Any]], load: Load) -> list[dict[str, float]]:
    """Run the load test.

    Returns:
        for each concurrency `concurrency`, `requests`, `tokens_per_second` and `requests_per_second` (of all clients together), the
        `PERCENTILES` of `ttft_ms` (time to first token), `itl_ms` (between two pieces of an answer: a piece is a token, with
        drafts one verification's tokens; 0 if every answer came in one piece) and `latency_ms` (to the end of an answer), as
        `<name>_p<n>`, and `itl_ms_mean`, by token.
    """
    return [asyncio.run(_level(url, model, rows, load, concurrency)) for concurrency in load.concurrencies]


async def _level(url: str, model: str, rows: Sequence[dict[str, Any]], load: Load, concurrency: int) -> dict[str, float]:
    limits = DefaultAsyncHttpxClient(limits=Limits(max_connections=concurrency, max_keepalive_connections=concurrency))
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600, http_client=limits) as client:
        waiting = iter(range(max(load.requests, concurrency)))
        done: list[Request] = []

        async def work() -> None:
            for number in waiting:  # one iterator for all clients: whoever is free takes the next
                done.append(await _request(client, model, rows[number % len(rows)], load.max_tokens))

        await _request(client, model, rows[0], load.max_tokens)  # opens the connection
        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        seconds = time.perf_counter() - started
    samples = {"ttft_ms": [one.first for one in done], "itl_ms": [gap for one in done for gap in one.between] or [0.0],
               "latency_ms": [one.whole for one in done]}
    return {
        "concurrency": concurrency, "requests": len(done), "tokens_per_second": sum(one.tokens for one in done) / seconds,
        "requests_per_second": len(done) / seconds,
        **{f"{name}_p{share}": 1e3 * float(np.percentile(values, share)) for name, values in samples.items() for share in PERCENTILES},
        "itl_ms_mean": 1e3 * mean((one.whole - one.first) / (one.tokens - 1) for one in done),
    }


async def _request(client: AsyncOpenAI, model: str, row: dict[str, Any], max_tokens: int) -> Request:
    started, arrivals, tokens = time.perf_counter(), [], 0
    stream = await client.chat.completions.create(
        model=model, messages=row["messages"], max_tokens=max_tokens, temperature=0.0, stream=True,
        extra_body={"ignore_eos": True, "return_token_ids": True})
    async for chunk in stream:
        came = getattr(chunk.choices[0], "token_ids", None) if chunk.choices else None
        if came:  # tags that a parser swallows are tokens too: text would tell of the first one too late
            arrivals.append(time.perf_counter())
            tokens += len(came)
    if tokens != max_tokens:
        raise CheckFailedError(f"the server streamed {tokens} of {max_tokens} tokens in answer to {row['messages']}")
    return Request(first=arrivals[0] - started, between=[b - a for a, b in pairwise(arrivals)], whole=arrivals[-1] - started, tokens=tokens)
