"""What is done with the servers while they are up: checks, the comparisons with and without drafts and of reasoning modes, load test."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from openai import OpenAI
from tokenizers import Tokenizer

from components.serve.checks import Answer, ask, check_answers, check_schema, check_streaming, check_tool_call
from components.serve.drafts import acceptance, compare, noise
from components.serve.loadtest import measure
from components.serve.params import Params
from components.serve.prompts import draw_rows
from components.serve.reasoning import compare_modes
from stagecraft.contract.runlog import RunLog
from stagecraft.inference.server import Server


def inspect(plain: Server, drafting: Server, params: Params, log: RunLog, part_done: Callable[[], None]) -> dict[str, Any]:
    """Check and measure the servers.

    Args:
        plain: the server without drafts.
        drafting: the server with drafts, as it is to be deployed; `plain` itself when there are none.
        part_done: called after the checks and after the load test.

    Returns:
        the report: `checks`, `answers`, `transcript`, `mtp`, `modes`, `load`, `load_without_mtp`, see the functions these come from.

    Raises:
        CheckFailedError: see components.serve.checks.
    """
    name, check = params.server.name, params.check
    rows = draw_rows(check.prompts_per_family, params.seed)
    tokenizer = Tokenizer.from_file(str(plain.model / "tokenizer.json"))

    def ask_all(server: Server, at_once: int, gaps: bool) -> list[Answer]:
        with _client(server) as client, ThreadPoolExecutor(at_once) as clients:
            return list(clients.map(lambda row: ask(client, name, row, check.max_tokens, gaps), rows))

    drafts = params.server.draft_tokens
    with ThreadPoolExecutor(1) as pool:  # each server answers one by one: nothing else in the batch can touch an answer
        with_drafts = pool.submit(ask_all, drafting, 1, gaps=False) if drafts else None
        answers = ask_all(plain, 1, gaps=True)
        together = ask_all(plain, params.server.max_num_seqs, gaps=True) if drafts else answers
        drafted = with_drafts.result() if with_drafts else answers
    report: dict[str, Any] = {"answers": {**check_answers(rows, answers, tokenizer), "prompts": len(rows)}}
    report["transcript"] = [{"family": row["family"], "prompt": row["messages"][0]["content"], "answer": answer.text(tokenizer),
                             "tokens": answer.tokens} for row, answer in zip(rows, answers)]
    rounding = noise(answers, together)
    report["mtp"] = {"draft_tokens": drafts, "rounding_nats": rounding,
                     "identical": compare(rows, answers, drafted, max(check.tie, 2 * rounding)),
                     "identical_when_batched": sum(one.tokens == other.tokens for one, other in zip(answers, together)) / len(rows),
                     **(acceptance(drafting.url, drafts) if drafts else
                        {"mean_accepted_length": 1.0, "mean_accepted_length_stderr": 0.0,
                         "acceptance_by_position": [], "acceptance_by_position_stderr": []})}
    if report["mtp"]["identical"] < 1:
        log.note(f"{report['mtp']['identical']:.1%} of the answers are the same with drafts, {report['mtp']['identical_when_batched']:.1%} "
                 f"in a batch: rounding moves this model's choices by up to {rounding:.2g} nats")
    with _client(drafting) as client:
        report["checks"] = {"streaming": check_streaming(client, name, rows[0], check.max_tokens, tokenizer, drafts),
                            "schema": check_schema(client, name), "tool_call": check_tool_call(client, name)}
        report["modes"] = compare_modes(client, name, draw_rows(params.modes.prompts, params.seed, params.modes.families), params.modes,
                                        tokenizer, params.server.max_num_seqs)
    log.table("modes", report["modes"])
    part_done()

    report["load"] = measure(drafting.url, name, rows, params.load)
    report["load_without_mtp"] = measure(plain.url, name, rows, params.load) if drafts else report["load"]
    for level in report["load"]:
        log.step(int(level["concurrency"]), curve="load", **{key: value for key, value in level.items() if key != "concurrency"})
    part_done()
    return report


def _client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
