"""A short load test: some clients at once, streaming, every answer of the same length; what they waited and what they got."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, quantiles
from typing import Any

from openai import AsyncOpenAI

from components.serve.checks import CheckFailedError
from components.serve.params import Load


@dataclass(frozen=True)
class Request:
    """One streamed answer: seconds until its first token, between tokens on average, and its number of tokens."""

    first: float
    between: float
    tokens: int


def measure(url: str, model: str, rows: Sequence[dict[str, Any]], load: Load) -> list[dict[str, float]]:
    """Run the load test.

    Returns:
        for each concurrency `concurrency`, `requests`, `tokens_per_second` (of all clients together), `ttft_ms_p50` and
        `ttft_ms_p95` (time to first token), `itl_ms_mean` (between two tokens of an answer).
    """
    return [asyncio.run(_level(url, model, rows, load, concurrency)) for concurrency in load.concurrencies]


async def _level(url: str, model: str, rows: Sequence[dict[str, Any]], load: Load, concurrency: int) -> dict[str, float]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        async def work(worker: int) -> list[Request]:
            mine = [rows[(worker * load.requests + turn) % len(rows)] for turn in range(load.requests)]
            return [await _request(client, model, row, load.max_tokens) for row in mine]

        await _request(client, model, rows[0], load.max_tokens)  # opens the connection
        started = time.perf_counter()
        requests = [request for several in await asyncio.gather(*map(work, range(concurrency))) for request in several]
        seconds = time.perf_counter() - started
    firsts = [request.first for request in requests]
    cuts = quantiles(firsts, n=20, method="inclusive") if len(firsts) > 1 else firsts * 19
    return {
        "concurrency": concurrency, "requests": len(requests), "tokens_per_second": sum(r.tokens for r in requests) / seconds,
        "ttft_ms_p50": 1e3 * cuts[9], "ttft_ms_p95": 1e3 * cuts[18], "itl_ms_mean": 1e3 * mean(r.between for r in requests),
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
    return Request(first=arrivals[0] - started, between=(arrivals[-1] - arrivals[0]) / (tokens - 1), tokens=tokens)
