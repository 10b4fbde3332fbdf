"""Where the reward model is: the endpoint that the parameters name, or our own, trained and served beside the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from components.rl.params import Preferences, Stage
from components.rl.rlhf.comparisons import comparisons
from components.rl.rlhf.judge import Judge
from components.rl.rlhf.reward_model import REWARD_MODEL, taught, train_reward_model
from stagecraft.contract.runlog import RunLog
from stagecraft.data.tasks import FAMILIES, read_rows
from stagecraft.engine.collectives import FirstRank
from stagecraft.inference.server import Server
from stagecraft.inference.server_settings import Settings
from stagecraft.model.config import Architecture

NAME = "reward-model"
STARTUP_SECONDS = 900.0


@contextmanager
def judging(params: Stage, architecture: Architecture, weights: Mapping[str, Tensor], corpus: Path, work: Path, first: FirstRank,
            log: RunLog | None) -> Iterator[Judge | None]:
    """The judge, while the block runs; None if preferences are off, and on other ranks than the first.

    Args:
        weights: of the fine-tuned model, from which a reward model of our own starts.
        log: on rank 0 only.
    """
    asked = params.preferences
    if not asked.enabled:
        yield None
        return
    families = sorted({row["family"] for row in read_rows(corpus / "tasks" / "heldout.jsonl")} & set(FAMILIES))
    if not asked.url:
        train_reward_model(params, architecture, weights, corpus / "tokenizer", families, work, first, log)
    if not log:
        yield None
        return
    with ExitStack() as stack:
        if asked.url:
            judge = Judge(asked)
        else:
            server = stack.enter_context(Server(work / REWARD_MODEL, settings(params), work / "reward_model.log"))
            judge = Judge(served(asked, server), taught=True)
        judge.accuracy = accuracy(judge, params, families)
        log.note(f"reward model: right on {judge.accuracy:.1%} of held-out comparisons with a better answer")
        yield judge


def served(preferences: Preferences, server: Server) -> Preferences:
    """What asks our own, which needs no key."""
    return replace(preferences, url=f"{server.url}/v1", model=NAME, key_variable="")


def settings(params: Stage) -> Settings:
    """Of the server: a comparison holds a prompt, two answers and the words around them."""
    return Settings(name=NAME, max_model_len=2 * (params.max_prompt_tokens + params.max_new_tokens) + 256, max_num_seqs=64,
                    dtype=params.dtype, draft_tokens=0, tensor=params.generators.tensor, threads=params.threads,
                    startup_seconds=STARTUP_SECONDS)


def accuracy(judge: Judge, params: Stage, families: list[str]) -> float:
    """Share of held-out comparisons between a right and a wrong answer in which the judge gives the right one the higher score;
    not a number if no such comparison is among them."""
    learnt = {each.request for each in taught(params, families)}
    pairs = [each for each in comparisons(params.preferences.heldout, f"{params.seed}/heldout comparisons", families)
             if each.scores[0] != each.scores[1] and each.request not in learnt]
    found = judge.scores([(each.request, *each.answers) for each in pairs])
    return sum(scores is not None and (scores[0] - scores[1]) * (each.scores[0] - each.scores[1]) > 0
               for each, scores in zip(pairs, found)) / (len(pairs) or math.nan)
