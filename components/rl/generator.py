"""A generator: vLLM draws the completions of a step or of its share, the environments judge them, what is finished is kept on disk."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from components.rl.healing import answers_path
from components.rl.params import Stage
from components.rl.prompts import Row, by_difficulty, pick, read_prompts, share
from components.rl.rlhf.judge import Judge
from components.rl.rollouts import Draw, Sample, draw_path, read_draw, write_draw
from components.rl.talks import begin_all, hear_all
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import write_json
from stagecraft.data.chat import encode_prompt
from stagecraft.data.tasks import read_rows
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.inference.engine import Engine, completion_seeds


@dataclass(frozen=True)
class Job:
    """What a run asks of its generators.

    Attributes:
        corpus, model: artifacts, as the stage gets them.
        judge: gives the rewards of a step in the verifiers' place.
        kept: directory for what was drawn; what is there already is not drawn again.
        answered: steps after which held-out prompts are answered: healing is measured by that.
        first: steps that were done before.
    """

    params: Stage
    corpus: Path
    model: Path
    judge: Judge | None
    kept: Path
    answered: tuple[int, ...]
    first: int = 0


class Generator:
    """An engine with the prompts it is to ask.

    Args:
        worker: which of `generators.count` it is, from 0; it draws its share.
    """

    def __init__(self, job: Job, worker: int = 0):
        self.params, self.judge, self.kept, self.heldout = job.params, job.judge, job.kept, job.corpus / "tasks" / "heldout.jsonl"
        self.answered, self.worker, self.workers, params = job.answered, worker, job.params.generators.count, job.params
        self.tokenizer = load_tokenizer(job.corpus / "tokenizer")
        self.rows = read_prompts(job.corpus / "tasks" / "rl.jsonl", self.tokenizer, params)
        self.engine = Engine(job.model, max_model_len=params.max_prompt_tokens + params.max_new_tokens,
                             max_num_seqs=len(share(params.prompts_per_step, worker, self.workers)) * params.generations_per_prompt,
                             dtype=params.dtype, seed=params.seed, tensor=params.generators.tensor, threads=params.threads)
        self.version = 0
        job.kept.mkdir(parents=True, exist_ok=True)
        if params.curriculum.samples:
            self._try()

    @cached_property
    def ordered(self) -> list[Row]:
        """The prompts as the steps go through them; under a curriculum only once every worker has tried its share."""
        if not self.params.curriculum.samples:
            return self.rows
        solved = {id_: part for worker in range(self.workers)
                  for id_, part in json.loads(self._solved_path(worker).read_text())["solved"].items()}
        return by_difficulty(self.rows, solved, self.params.curriculum.drop_above)

    def update(self, version: int, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the weights after `version` optimizer steps, in place; completions under way go on with them."""
        self.engine.update_weights(weights)
        self.version = version

    def draw(self, step: int, between: Callable[[], None] | None = None) -> Draw:
        """The judged completions of this worker's share of a step, drawn or read back.

        Args:
            between: called before each of the engine's steps.
        """
        path = draw_path(self.kept, step, self.worker, self.workers)
        if (draw := read_draw(path)) is None:
            started, version = time.monotonic(), self.version
            samples = self._samples(pick(self.ordered, step, self.params), self.params.generations_per_prompt,
                                    self.params.seed * 1_000_003 + step, version, between)
            if self.judge:
                self.judge.reward(samples, self.params.generations_per_prompt)
            draw = Draw(samples, time.monotonic() - started)
            write_draw(path, draw)
        return draw

    def answer_heldout(self) -> None:
        """Keep greedy answers to held-out prompts, those of the weights there are now, if they are wanted. One worker does it.

        Raises:
            UserError: none fits.
        """
        path = answers_path(self.kept, self.version)
        if self.worker or self.version not in self.answered or path.exists():
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
        """Talks on this worker's share of the rows, `n` on each. A completion's seed is that of its place among all of them, so that it
        does not depend on how they are shared."""
        own = share(len(rows), self.worker, self.workers)
        talks = begin_all((rows[place] for place in own for _ in range(n)), self.tokenizer, self.engine.max_model_len, version,
                          self.params.environment_servers)
        speaking, turn = list(enumerate(talks, own.start * n)), 0
        while speaking:
            seeds = completion_seeds(seed + (turn << 40), len(rows) * n)
            drawn_with: list[int] = []  # version of the weights, by step of the engine: a token of every completion under way

            def before_step(drawn_with: list[int] = drawn_with) -> None:
                if between:
                    between()
                drawn_with.append(self.version)

            heard = self.engine.generate([talk.ids for _, talk in speaking], temperature=self.params.temperature,
                                         max_tokens=self.params.max_new_tokens, stop_token_ids=[self.tokenizer.eos_token_id],
                                         seed=[seeds[place] for place, _ in speaking], logprobs=True, between=before_step)
            for (_, talk), (said,) in zip(speaking, heard):
                talk.sample.newest = drawn_with[len(said.token_ids) - 1]
            going_on = hear_all((talk for _, talk in speaking), (said for said, in heard))
            speaking = [each for each, goes_on in zip(speaking, going_on) if goes_on]
            turn += 1
        return [talk.sample for talk in talks]

    def _solved_path(self, worker: int) -> Path:
        return self.kept / ("solved.json" if self.workers == 1 else f"solved-{worker + 1}-of-{self.workers}.json")

    def _try(self) -> None:
        """Keep which share of the tries of the stage's first model solves each prompt; measured once, before the first step. What was tried
        is kept as it goes: of a large corpus all tries take as long as many steps."""
        path, asked = self._solved_path(self.worker), asdict(self.params.curriculum)
        kept = json.loads(path.read_text()) if path.exists() else {}
        if kept.get("asked") != asked:
            kept = {"asked": asked, "tried": 0, "solved": {}}
        tries = self.params.curriculum.samples
        at_once = max(1, self.params.prompts_per_step * self.params.generations_per_prompt // tries)
        for start in range(kept["tried"], len(self.rows), at_once):
            samples = self._samples(self.rows[start:start + at_once], tries, self.params.seed - start - 1 & 0xFFFFFFFF, 0)
            rewards: dict[str, float] = defaultdict(float)
            for sample in samples:
                rewards[sample.id] += sample.reward
            # Divided once: a tenth added three times is more than 0.3, and `drop_above` may be 0.3.
            kept["solved"] |= {id_: total / tries for id_, total in rewards.items()}
            kept["tried"] = start + at_once
            write_json(path, kept)
