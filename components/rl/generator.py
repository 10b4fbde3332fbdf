"""The generator: vLLM draws a step's completions, the environments judge them, the finished step is kept on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from components.rl.params import Params
from components.rl.prompts import Row, by_difficulty, pick, read_prompts
from components.rl.rollouts import Draw, Sample, draw_path, read_draw, write_draw
from stagecraft.contract.files import write_json
from stagecraft.data.chat import encode_prompt
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.environments import split_thinking, verify
from stagecraft.inference.engine import Completion, Engine

_SOLVED = "solved.json"


class Generator:
    """An engine with the prompts it is to ask.

    Args:
        corpus, model: artifacts, as the stage gets them.
        kept: directory for the steps that were drawn; what is there already is not drawn again.
    """

    def __init__(self, params: Params, corpus: Path, model: Path, kept: Path):
        self.params, self.kept = params, kept
        self.tokenizer = load_tokenizer(corpus / "tokenizer")
        self.rows = read_prompts(corpus / "tasks" / "rl.jsonl", self.tokenizer, params)
        self.engine = Engine(model, max_model_len=params.max_prompt_tokens + params.max_new_tokens,
                             max_num_seqs=params.prompts_per_step * params.generations_per_prompt, seed=params.seed, threads=params.threads)
        self.version = 0
        kept.mkdir(parents=True, exist_ok=True)
        if params.curriculum.samples:
            self.rows = by_difficulty(self.rows, self._solved(), params.curriculum.drop_above)

    def update(self, version: int, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the weights after `version` optimizer steps, in place; completions under way go on with them."""
        self.engine.update_weights(weights)
        self.version = version

    def draw(self, step: int, between: Callable[[], None] | None = None) -> Draw:
        """The judged completions of a step, drawn or read back.

        Args:
            between: called before each of the engine's steps.
        """
        path = draw_path(self.kept, step)
        if (draw := read_draw(path)) is None:
            started, version = time.monotonic(), self.version
            samples = self._samples(pick(self.rows, step, self.params), self.params.generations_per_prompt,
                                    self.params.seed * 1_000_003 + step, version, between)
            draw = Draw(samples, time.monotonic() - started)
            write_draw(path, draw)
        return draw

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def _samples(self, rows: list[Row], n: int, seed: int, version: int, between: Callable[[], None] | None = None) -> list[Sample]:
        prompts = [encode_prompt(self.tokenizer, row) for row in rows]
        groups = self.engine.generate(prompts, temperature=self.params.temperature, max_tokens=self.params.max_new_tokens, n=n,
                                      stop_token_ids=[self.tokenizer.eos_token_id], seed=seed, logprobs=True, between=between)
        return [self._judged(row, prompt, completion, version)
                for row, prompt, group in zip(rows, prompts, groups) for completion in group]

    def _judged(self, row: Row, prompt: list[int], completion: Completion, version: int) -> Sample:
        ids = completion.token_ids[:-1] if completion.finished else completion.token_ids
        text = self.tokenizer.decode(ids)
        reward = verify(row, text, finished=completion.finished)
        return Sample(id=row["id"], family=row["family"], asked=row["messages"][-1]["content"], prompt=prompt, tokens=completion.token_ids,
                      logprobs=completion.logprobs, text=text, finished=completion.finished, reward=reward.score, parts=reward.parts,
                      malformed=completion.finished and malformed(row, text, reward.parts), version=version)

    def _solved(self) -> dict[str, float]:
        """Share of the fine-tuned model's tries that solve each prompt; measured once, before the first step."""
        path, asked = self.kept / _SOLVED, asdict(self.params.curriculum)
        if path.exists() and (found := json.loads(path.read_text()))["asked"] == asked:
            return found["solved"]
        solved: dict[str, float] = {}
        tries = self.params.curriculum.samples
        at_once = max(1, self.params.prompts_per_step * self.params.generations_per_prompt // tries)
        for start in range(0, len(self.rows), at_once):
            samples = self._samples(self.rows[start:start + at_once], tries, self.params.seed - start - 1 & 0xFFFFFFFF, 0)
            for sample in samples:
                solved[sample.id] = solved.get(sample.id, 0.0) + sample.reward / tries
        write_json(path, {"asked": asked, "solved": solved})
        return solved


def malformed(row: Row, text: str, parts: dict[str, float]) -> bool:
    """Thinking that cannot be read, or a tool call that cannot where one is asked for."""
    return split_thinking(text) is None or (row["verifier"]["kind"] == "tool_call" and not parts["format"])


