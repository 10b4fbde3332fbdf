"""The engine of this process as a model of lm-eval: chat prompts in, answers without their thinking out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.api_models import JsonChatStr

from components.evaluate.benchmarks import REQUEST
from components.evaluate.episodes import play
from stagecraft.contract.errors import UserError
from stagecraft.data.chat import encode_prompt
from stagecraft.environments import split_thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stagecraft.inference.engine import Engine


class EngineLM(LM):
    """Answers `generate_until`; no task here asks for log-likelihoods, which chat endpoints do not give.

    Args:
        engine: computes.
        tokenizer: with the chat template.
        stop: token ids that end an answer.
        max_new_tokens: of an answer, whatever more a task grants.
        seed: of sampled answers.
        batch: prompts handed to the engine at a time.
    """

    tokenizer_name = "chat"

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, stop: Sequence[int], *, max_new_tokens: int, seed: int,
                 batch: int):
        super().__init__()
        self._engine, self._tokenizer, self._stop = engine, tokenizer, list(stop)
        self._max_new_tokens, self._seed, self._batch = max_new_tokens, seed, batch

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> JsonChatStr:
        return JsonChatStr(json.dumps(chat_history))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return play(requests, self._answer)

    def _answer(self, requests: list[Instance], turn: int) -> list[str]:
        """One answer to each; nothing to a conversation that has outgrown the context."""
        answers = [""] * len(requests)
        groups: dict[tuple[float, int], list[int]] = {}
        for index, request in enumerate(requests):
            settings = request.args[1]
            tokens = min(self._max_new_tokens, settings.get("max_gen_toks", self._max_new_tokens))
            groups.setdefault((settings.get("temperature", 0.0), tokens), []).append(index)
        for (temperature, tokens), indices in groups.items():
            for start in range(0, len(indices), self._batch):
                encoded = {index: self._encode(requests[index], tokens, turn) for index in indices[start:start + self._batch]}
                part = [index for index, prompt in encoded.items() if prompt]
                prompts = [encoded[index] for index in part]
                completions = self._engine.generate(prompts, temperature=temperature, max_tokens=tokens, stop_token_ids=self._stop,
                                                    seed=self._seed + start)
                for index, (completion,) in zip(part, completions):
                    answers[index] = self._say(completion, requests[index].args[1].get("until") or ())
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("tasks here are judged by what is generated")

    loglikelihood_rolling = loglikelihood

    def _encode(self, request: Instance, tokens: int, turn: int) -> list[int]:
        messages = json.loads(request.args[0].prompt)
        row: dict[str, Any] = messages.pop() if messages[-1]["role"] == REQUEST else {}
        prompt = encode_prompt(self._tokenizer, {**row, "messages": messages})
        if len(prompt) + tokens > self._engine.max_model_len:
            if turn > 1:
                return []
            raise UserError(f"a prompt of {request.task_name} has {len(prompt)} tokens, max_model_len less max_new_tokens leaves "
                            f"{self._engine.max_model_len - tokens}", where="evaluate.max_model_len",
                            mend="raise it, or shorten evaluate.benchmarks.lengths")
        return prompt

    def _say(self, completion: Any, until: Sequence[str]) -> str:
        """The answer after the thinking, up to the first of `until`; nothing where the thinking is malformed or never ended."""
        spoken = completion.token_ids[:-1] if completion.finished else completion.token_ids
        halves = split_thinking(self._tokenizer.decode(spoken, skip_special_tokens=False))
        answer = halves[1] if halves else ""
        for stop in until:
            answer = answer.partition(stop)[0]
        return answer
