"""What the student learns from and is judged on: windows of fine-tuning conversations and of RL rollouts, and prompts to answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from components.quantize.calibrate import cut, unseen_conversations
from stagecraft.contract.errors import UserError
from stagecraft.data.chat import encode_prompt
from stagecraft.data.tasks.rows import read_rows
from stagecraft.data.tokenizer import IM_END, load_tokenizer

if TYPE_CHECKING:
    from components.quantize.params import Calibration, Distillation

JUDGED = 0.25  # of the prompts with rollouts: theirs are in no training window
MEND = "lower quantize.distil.steps, batch or heldout"


@dataclass(frozen=True)
class Mixture:
    """Windows int64 [N, length] to train on and, of other conversations and prompts, to judge by; task rows without a rollout."""

    training: Tensor
    heldout: Tensor
    prompts: list[dict[str, Any]]
    tokenizer: PreTrainedTokenizerBase


def mixture(corpus: Path, aligned: Path, params: Distillation, calibration: Calibration, note: Callable[[str], None]) -> Mixture:
    """Draw both sets of windows with the same shares, in random order; windows have one source each, so shares are of tokens.

    What is judged on never repeats, for its windows count as independent; where there is less to learn from than wanted, it comes
    again and `note` is told.

    Raises:
        UserError: no rollouts, rollouts of prompts that the corpus does not have, too few of either kind, too few prompts.
    """
    rng = np.random.default_rng([params.seed, calibration.seed])
    tokenizer = load_tokenizer(corpus / "tokenizer")
    rows = {row["id"]: row for row in read_rows(corpus / "tasks" / "rl.jsonl")}
    spoken = unseen_conversations(corpus, calibration)
    path = aligned / "rollouts.jsonl"
    rollouts = read_rollouts(path, rows) if params.rollouts_share else []
    ids = sorted({name for name, _ in rollouts})
    judged = {ids[index] for index in rng.permutation(len(ids))[:round(len(ids) * JUDGED)]}
    parts = []
    for count, is_judge in ((params.heldout, True), (params.steps * params.batch, False)):
        drawn = round(count * params.rollouts_share)
        answered = _encoded([(rows[name], text) for name, text in rollouts if (name in judged) == is_judge], tokenizer, rng)
        windows = []
        for documents, rows_wanted, where in ((spoken, count - drawn, corpus / "tasks" / "sft.jsonl"), (answered, drawn, path)):
            if rows_wanted:
                again = documents if is_judge else _again(documents, rows_wanted * calibration.length, where, note)
                windows.append(cut(again, rows_wanted, calibration.length, where, MEND))
        parts.append(torch.from_numpy(rng.permutation(np.concatenate(windows))))
    prompts = [rows[name] for name in sorted(rows.keys() - set(ids))]
    if len(prompts) < params.prompts:
        raise UserError(f"{len(prompts)} prompts without a rollout where {params.prompts} are wanted",
                        where=str(corpus / "tasks" / "rl.jsonl"), mend="lower quantize.distil.prompts, or raise curate.tasks.rl_rows")
    chosen = rng.permutation(len(prompts))[:params.prompts]
    return Mixture(parts[1], parts[0], [prompts[index] for index in chosen], tokenizer)


def read_rollouts(path: Path, rows: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """The completions that the rl stage left beside its checkpoint: (id of the prompt's row, text with the stop token if it had one).

    Raises:
        UserError: there are none, a line is not one, or its prompt is not among `rows`.
    """
    mend = "give the artifact of the rl stage, or set quantize.distil.rollouts_share to 0, or steps to 0"
    try:
        lines = path.read_text().splitlines()
    except OSError:
        raise UserError("no rollouts to distil on", where=str(path), mend=mend) from None
    rollouts = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            is_known, text = record["id"] in rows, record["completion"] + IM_END * record["finished"]
        except (ValueError, TypeError, KeyError):
            raise UserError("not a rollout: a JSON object with id, completion and finished", where=f"{path}:{number}", mend=mend) from None
        if not is_known:
            raise UserError(f"rollout of {record['id']!r}, which is no RL prompt of this corpus", where=f"{path}:{number}",
                            mend="use the corpus that the checkpoint was trained on")
        rollouts.append((record["id"], text))
    return rollouts


def _again(documents: Iterable[np.ndarray], wanted: int, where: Path, note: Callable[[str], None]) -> Iterator[np.ndarray]:
    """The documents, and where they end the same from the first on, for ever."""
    kept = []
    for document in documents:
        kept.append(document)
        yield document
    if kept:
        size = sum(map(len, kept))
        note(f"distillation: {where.name} has {size} tokens to learn from where {wanted} are wanted, so they come more than once")
    while kept:
        yield from kept


def _encoded(rollouts: list[tuple[dict[str, Any], str]], tokenizer: PreTrainedTokenizerBase,
             rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Prompt and completion as the policy saw and wrote them, in random order."""
    for index in rng.permutation(len(rollouts)):
        row, text = rollouts[index]
        yield np.asarray(encode_prompt(tokenizer, row) + tokenizer.encode(text, add_special_tokens=False))
