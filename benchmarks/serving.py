"""A server as it starts, under load, and over a long time: `vllm bench serve` at rising numbers of clients, and memory over many requests.

`python -m benchmarks.serving start MODEL`: time and processor time until it is healthy, and its memory then.
`python -m benchmarks.serving curve MODEL`: throughput and latency at 1, 8, 32, 64 clients, with and without drafts.
`python -m benchmarks.serving soak MODEL --requests 10000`: memory of the server's processes as requests go by.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from openai import AsyncOpenAI

from stagecraft.cli.serve import settings
from stagecraft.inference.server import Server

# `vllm bench serve` itself: its command line asks for a distribution named vllm, which the CPU build is not.
BENCH = ("import argparse; from vllm.benchmarks import serve; p = argparse.ArgumentParser(); serve.add_cli_args(p); "
         "serve.main(p.parse_args())")
COLUMNS = ("request_throughput", "output_throughput",
           *(f"{part}_{what}_ms" for what in ("ttft", "itl", "e2el") for part in ("median", "p95", "p99")))
SAMPLES = 20


def bench(server: Server, clients: int, requests: int, prompt_tokens: int, tokens: int) -> dict[str, float]:
    """One run of `vllm bench serve`: random prompts, answers of one length; its own figures."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [sys.executable, "-c", BENCH, "--backend", "openai", "--endpoint", "/v1/completions", "--base-url", server.url,
             "--model", server.settings.name, "--tokenizer", str(server.model), "--dataset-name", "random",
             "--random-input-len", str(prompt_tokens), "--random-output-len", str(tokens), "--random-range-ratio", "0",
             "--num-prompts", str(requests), "--max-concurrency", str(clients), "--ignore-eos", "--seed", "0", "--disable-tqdm",
             "--percentile-metrics", "ttft,itl,e2el", "--metric-percentiles", "95,99", "--save-result", "--result-dir", scratch,
             "--result-filename", "result.json"], check=True, stdout=subprocess.DEVNULL)
        result = json.loads((Path(scratch) / "result.json").read_text())
    if result["completed"] != requests:
        raise SystemExit(f"{requests - result['completed']} of {requests} requests failed at {clients} clients")
    return {column: result[column] for column in COLUMNS}


def curve(server: Server, options: argparse.Namespace) -> None:
    print(f"drafts of {server.settings.draft_tokens}, batches of {server.settings.max_num_seqs}\n"
          f"{'clients':>7} {'req/s':>8} {'tok/s':>8} " + " ".join(f"{name[:-3]:>12}" for name in COLUMNS[2:]))
    for clients in options.concurrency:
        found = bench(server, clients, max(clients, options.requests), options.prompt_tokens, options.tokens)
        print(f"{clients:7} {found['request_throughput']:8.2f} {found['output_throughput']:8.1f} "
              + " ".join(f"{found[name]:12.1f}" for name in COLUMNS[2:]), flush=True)


def processes(server: Server) -> list[psutil.Process]:
    """All of the server's."""
    own = psutil.Process(server.pid)
    return [own, *own.children(recursive=True)]


def memory(server: Server) -> float:
    """MB of all the server's processes; what several share counts once."""
    return sum(process.memory_full_info().pss for process in processes(server)) / 1e6


def started(server: Server, seconds: float) -> None:
    busy = sum(sum(process.cpu_times()[:2]) for process in processes(server))
    print(f"drafts of {server.settings.draft_tokens}: healthy after {seconds:.1f} s, {busy:.1f} s of processor time, "
          f"{memory(server):.0f} MB", flush=True)


async def soak(server: Server, options: argparse.Namespace) -> None:
    """Every request another prompt; memory at `SAMPLES` places, and its trend over the second half."""
    rows: list[tuple[int, float]] = []
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600) as client:
        numbers = iter(range(options.requests))
        step = max(1, options.requests // SAMPLES)

        async def work() -> None:
            for number in numbers:
                await client.chat.completions.create(
                    model=server.settings.name, messages=[{"role": "user", "content": f"request {number}"}], max_tokens=options.tokens,
                    temperature=0.0, extra_body={"ignore_eos": True})
                if (number + 1) % step == 0:
                    rows.append((number + 1, memory(server)))
                    print(f"{number + 1:8} requests: {rows[-1][1]:8.1f} MB", flush=True)

        await asyncio.gather(*(work() for _ in range(max(options.concurrency))))
    half = np.array(rows[len(rows) // 2:])
    if len(half) > 1:
        print(f"trend of the second half: {1000 * np.polyfit(half[:, 0], half[:, 1], 1)[0]:+.2f} MB per 1,000 requests")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["start", "curve", "soak"])
    parser.add_argument("model", type=Path, help="a checkpoint directory")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 64], help="clients at once; of a soak the last counts")
    parser.add_argument("--requests", type=int, default=64, help="of a level, at least one a client; or of the soak (default: 64)")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer (default: 32)")
    parser.add_argument("--draft-tokens", type=int, nargs="+", default=[0, 2], help="servers to measure, one after another (default: 0 2)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for drafts in options.draft_tokens:
            begun = time.monotonic()
            with Server(options.model, replace(settings(drafts), startup_seconds=900.0), Path(scratch) / "log") as server:
                if options.what == "start":
                    started(server, time.monotonic() - begun)
                elif options.what == "curve":
                    curve(server, options)
                else:
                    asyncio.run(soak(server, options))


if __name__ == "__main__":
    main()
