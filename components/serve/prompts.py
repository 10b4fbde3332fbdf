"""Fresh task prompts to ask the server: drawn here, because a served model has no corpus beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from components.serve.params import Params
from stagecraft.contract.errors import UserError
from stagecraft.data.tasks import FAMILIES
from stagecraft.data.tokenizer import load_tokenizer


def draw_rows(per_family: int, seed: int, families: Iterable[str] = FAMILIES) -> list[dict[str, Any]]:
    """Task rows, `per_family` of every one of `families`, families in turn; the same seed gives the same."""
    streams = {family: Random(f"serve/{seed}/{family}") for family in families}
    return [FAMILIES[family](random).row(f"serve-{family}-{number}", family)
            for number in range(per_family) for family, random in streams.items()]


def check_lengths(model: Path, params: Params) -> None:
    """Refuse what would leave an answer less room than `max_tokens`, before there is a server: it would shorten the answer.

    Raises:
        UserError: the tokenizer cannot be read, or a prompt that will be asked is too long for `server.max_model_len`.
    """
    tokenizer = load_tokenizer(model)
    rows, room = draw_rows(params.check.prompts_per_family, params.seed), params.server.max_model_len
    thought_about = draw_rows(params.modes.prompts, params.seed, params.modes.families)
    for name, max_tokens, asked, mode in (
            ("check", params.check.max_tokens, rows, {}),
            ("modes", params.modes.max_tokens, thought_about, {"reasoning_effort": "low"}),  # the mode whose prompts are the longest
            ("load", params.load.max_tokens, [{**row, "tools": None} for row in rows], {})):
        texts = [tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), add_generation_prompt=True, tokenize=False, **mode)
                 for row in asked]
        longest, row = max((len(tokenizer.encode(text, add_special_tokens=False)), row["id"]) for text, row in zip(texts, asked))
        if longest + max_tokens > room:
            raise UserError(f"the prompt of {row} has {longest} tokens, {name}.max_tokens leaves {room - max_tokens}",
                            where="serve.server.max_model_len", mend=f"raise it to {longest + max_tokens} or more")
