"""Does a model in memory, fake quantisers included, still solve tasks: greedy answers, judged by the tasks' own verifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stagecraft.data.chat import encode_prompt
from stagecraft.data.tokenizer import IM_END
from stagecraft.environments import verify

if TYPE_CHECKING:
    from transformers import NemotronHForCausalLM, PreTrainedTokenizerBase


@torch.no_grad()
def solved(model: NemotronHForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], max_new_tokens: int) -> Tensor:
    """float64 [rows]: 1 where the greedy answer is finished, well formed and right, else 0."""
    if not rows:
        return torch.zeros(0, dtype=torch.float64)
    stop = tokenizer.convert_tokens_to_ids(IM_END)
    prompts = [encode_prompt(tokenizer, row) for row in rows]
    longest = max(map(len, prompts))
    silent = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([[stop] * pad + prompt for pad, prompt in zip(silent, prompts)], device=model.device)
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in silent], device=model.device)
    out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stop, pad_token_id=stop,
                         temperature=None, top_p=None, top_k=None)
    return torch.tensor([_judge(row, answer, stop, tokenizer) for row, answer in zip(rows, out[:, longest:].tolist())], dtype=torch.float64)


def _judge(row: dict[str, Any], answer: list[int], stop: int, tokenizer: PreTrainedTokenizerBase) -> float:
    finished = stop in answer
    text = tokenizer.decode(answer[:answer.index(stop)] if finished else answer, skip_special_tokens=False)
    return float(verify(row, text, finished=finished).score == 1.0)
