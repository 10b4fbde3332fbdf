"""The generator: vLLM draws a step's completions, the environments judge them, the finished step is kept on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from components.rl.healing import answers_path
from components.rl.params import Params
from components.rl.prompts import Row, by_difficulty, pick, read_prompts
from components.rl.rlhf.judge import Judge
from components.rl.rollouts import Draw, Sample, draw_path, read_draw, write_draw
from components.rl.talks import begin
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import write_json
from stagecraft.data.chat import encode_prompt
from stagecraft.data.tasks import read_rows
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.inference.engine import Engine

_SOLVED = "solved.json"


class Generator:
    """An engine with the prompts it is to ask.

    Args:
        corpus, model: artifacts, as the stage gets them.
        judge: gives the rewards of a step in the verifiers' place.
        kept: directory for the steps that were drawn; what is there already is not drawn again.
    """

    def __init__(self, params: Params, corpus: Path, model: Path, judge: Judge | None, kept: Path):
        self.params, self.judge, self.kept, self.heldout = params, judge, kept, corpus / "tasks" / "heldout.jsonl"
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
            if self.judge:
                self.judge.reward(samples, self.params.generations_per_prompt)
            draw = Draw(samples, time.monotonic() - started)
            write_draw(path, draw)
        return draw

    def answer_heldout(self) -> None:
        """Keep greedy answers to held-out prompts, those of the weights there are now: healing is measured by them.

        Raises:
            UserError: none fits.
        """
        path = answers_path(self.kept, self.version)
        if not self.params.healing.steps or path.exists():
            return
        prompts = [prompt for row in read_rows(self.heldout)
                   if len(prompt := encode_prompt(self.tokenizer, row)) <= self.params.max_prompt_tokens][:self.params.healing.heldout]
        if not prompts:
            raise UserError(f"no held-out prompt of at most {self.params.max_prompt_tokens} tokens", where=str(self.heldout),
                            mend="raise rl.max_prompt_tokens, or set rl.healing.steps to 0")
        answers = self.engine.generate(prompts, temperature=0, max_tokens=self.params.max_new_tokens,
                                       stop_token_ids=[self.tokenizer.eos_token_id])
        write_json(path, [[prompt, answer.token_ids] for prompt, (answer,) in zip(prompts, answers)])

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def _samples(self, rows: list[Row], n: int, seed: int, version: int, between: Callable[[], None] | None = None) -> list[Sample]:
        talks = [begin(row, self.tokenizer, self.engine.max_model_len, version, self.params.environment_servers)
                 for row in rows for _ in range(n)]
        speaking, turn = talks, 0
        while speaking:
            heard = self.engine.generate([talk.ids for talk in speaking], temperature=self.params.temperature,
                                         max_tokens=self.params.max_new_tokens, stop_token_ids=[self.tokenizer.eos_token_id],
                                         seed=seed + (turn << 40), logprobs=True, between=between)
            speaking = [talk for talk, (said,) in zip(speaking, heard) if talk.hear(said)]
            turn += 1
        return [talk.sample for talk in talks]

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


