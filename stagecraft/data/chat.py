"""Conversations as token ids: the prompt a model is asked with, and a demonstration with its loss mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagecraft.data.tokenizer import IM_END

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_prompt(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], enable_thinking: bool = True) -> str:
    """A row's messages and tools as text, up to and including the generation prompt; without thinking its block is closed in there."""
    return tokenizer.apply_chat_template(
        row["messages"], tools=row.get("tools") or None, add_generation_prompt=True, tokenize=False, enable_thinking=enable_thinking,
    )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> list[int]:
    """Token ids of a row's prompt, ending where the assistant is to speak.

    Args:
        tokenizer: from `load_tokenizer`.
        row: a task row (`messages`, optionally `tools`).
    """
    return tokenizer.encode(render_prompt(tokenizer, row), add_special_tokens=False)


def continuation(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> str:
    """What the chat template puts between an assistant's turn, its `<|im_end|>` included, and the next: `messages` and the prompt to speak.

    It does not depend on what the assistant said, so that the model goes on from the very tokens it drew.
    """
    said = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
    before = tokenizer.apply_chat_template(said, tokenize=False)
    after = tokenizer.apply_chat_template([*said, *messages], add_generation_prompt=True, tokenize=False)
    return after[before.rindex(IM_END) + len(IM_END):]


def encode_demonstration(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """A row's prompt and demonstration as the model would have produced it.

    Returns:
        (ids, loss_mask), equally long: the mask is 1 on the assistant's tokens, `<|im_end|>` included, and 0 on the prompt.
    """
    prompt = encode_prompt(tokenizer, row)
    spoken = tokenizer.encode(row["demonstration"] + IM_END, add_special_tokens=False)
    return prompt + spoken, [0] * len(prompt) + [1] * len(spoken)
