"""A stage's conversations as token ids and loss masks: each rank encodes a share of the rows, once, and all map what all have written."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError

from components.sft.params import Params, Stage
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import sha256, whole_directory, write_json
from stagecraft.contract.runlog import RunLog
from stagecraft.data.conversations import MEND, encode_conversation, lines_of, parse_conversation
from stagecraft.data.modes import draw_mode, in_mode
from stagecraft.data.tasks.rows import parse_row
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.engine.collectives import FirstRank

Conversation = tuple[Sequence[int], Sequence[int]]  # token ids, loss mask
_Fault = tuple[int, str, str, str]  # of a row, by its number: what, where, how to mend it
_PARTS = "parts.json"  # there once all parts are
_TELL_EVERY = 100


class Encoded(Sequence[Conversation]):
    """What `encode` has left in a directory; ids are int32, masks uint8, both views of memory maps.

    Attributes:
        files: SHA-256 of the files of conversations they come from, the corpus's apart.
        skipped: the bad rows that were left out, as "file:line: reason".
    """

    def __init__(self, directory: Path):
        made = json.loads((directory / _PARTS).read_text())
        self.files, parts = made["files"], [directory / part for part in made["parts"]]
        self._ids, self._masks, lengths = ([np.asarray(np.load(part / f"{name}.npy", mmap_mode="r")) for part in parts]
                                           for name in ("ids", "mask", "lengths"))
        self.skipped = [row for part in parts for row in json.loads((part / "skipped.json").read_text())]
        self._lengths = np.concatenate(lengths)
        self._part = np.repeat(np.arange(len(parts), dtype=np.int32), [len(each) for each in lengths])
        self._starts = np.concatenate([np.cumsum(each, dtype=np.int64) - each for each in lengths])

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        part, start = self._part[index], self._starts[index]
        place = slice(start, start + self._lengths[index])
        return self._ids[part][place], self._masks[part][place]


def encode(corpus: Path, params: Params, stage: Stage, directory: Path, first: FirstRank, log: RunLog | None) -> Encoded:
    """Every conversation in the stage's modes, in the order of the rows, whatever the number of ranks. All ranks call it.

    What a start before has finished in `directory` is taken from there, if the files of conversations are what they were then.

    Args:
        log: of the first rank.

    Raises:
        UserError: there are no conversations, or a bad row is not to be skipped: the first of them, on every rank; or a training has begun
            with other contents of a file.
    """
    digests, whole, lost = first.broadcast(first.here and _last(directory, params))
    if lost:
        raise UserError("the file is not what it was when this training began", where=f"sft.data.files: {lost}",
                        mend=f"put it back as it was, or delete {directory.parent} to begin anew with what it is now")
    if not whole:
        part = directory / f"part-{first.rank:05d}"
        conversations, skipped, fault = _encode(corpus, params, stage, first.rank, first.ranks, log)
        if not fault:
            _write(part, conversations, skipped)
        if faults := [each for each in first.gather(fault) if each]:
            _, what, where, mend = min(faults)
            raise UserError(what, where=where, mend=mend)
        if first.here:
            write_json(directory / _PARTS, {"files": digests, "parts": [f"part-{rank:05d}" for rank in range(first.ranks)]})
        first.broadcast()
    encoded = Encoded(directory)
    if log and encoded.files:
        log.record(files=encoded.files)
    if not encoded:
        raise UserError("no conversations", where=str(corpus / "tasks" / "sft.jsonl"),
                        mend="raise curate.tasks.sft_rows, or name sft.data.files")
    return encoded


def _digest(path: Path) -> str:
    """SHA-256; "" of what cannot be read, which nobody needs any more or whose lines will tell."""
    try:
        return sha256(path)
    except OSError:
        return ""


def _last(directory: Path, params: Params) -> tuple[dict[str, str], bool, str]:
    """(Digests of the files, whether all parts there are made of them, a file that is another since a training began or "")."""
    digests, parts = {name: _digest(Path(name)) for name in params.data.files}, directory / _PARTS
    if not parts.is_file():
        return digests, False, ""
    known = json.loads(parts.read_text())["files"]
    changed = [name for name, digest in digests.items() if digest and digest != known[name]]
    if changed and any(directory.parent.glob("checkpoints/step-*")):
        return digests, False, changed[0]
    if changed:
        parts.unlink()  # before a rank replaces its part: if another then fails, no start takes what is left for a whole
    return digests, not changed, ""


def _encode(corpus: Path, params: Params, stage: Stage, rank: int, ranks: int,
            log: RunLog | None) -> tuple[list[tuple[array, bytes]], list[str], _Fault | None]:
    """A rank's share: conversations, the bad rows skipped, and the first that is not to be."""
    tokenizer, shares, skip_bad = load_tokenizer(corpus / "tokenizer"), asdict(stage.modes), params.data.bad_rows == "skip"
    count = sum(1 for _ in _rows(corpus, params))
    begin, end = (number * count // ranks for number in (rank, rank + 1))
    conversations, skipped = [], []
    with log.bar("encoding", end - begin, "conversation") if log and end - begin > _TELL_EVERY else nullcontext() as bar:
        for number, (place, line) in enumerate(islice(_rows(corpus, params), begin, end), begin):
            try:
                row = parse_conversation(line) if place else _demonstrated(line, corpus)
                try:
                    ids, mask = encode_conversation(tokenizer, *in_mode(row, draw_mode(params.seed, number, shares), params.seed + number))
                except (TemplateError, TypeError, ValueError) as error:  # what a tokenizer's own template makes of a row
                    raise UserError(f"the chat template cannot write it: {error}") from error
                if place and len(ids) - 1 > stage.pack_tokens:
                    raise UserError(f"{len(ids) - 1} tokens do not fit into a pack of {stage.pack_tokens}")
            except UserError as error:
                if not place or not skip_bad:
                    return [], [], (number, error.what, place or error.where, MEND if place else error.mend)
                skipped.append(f"{place}: {error.what}")
            else:
                conversations.append((array("i", ids), bytes(mask)))
            if bar and ((done := number + 1 - begin) % _TELL_EVERY == 0 or done == end - begin):
                bar.advance(done - bar.done)
    return conversations, skipped, None


def _rows(corpus: Path, params: Params) -> Iterator[tuple[str, str]]:
    """("", line) of the corpus's rows, then ("file:line", line) of those that are a user's."""
    if params.data.tasks:
        yield from (("", line) for _, line in lines_of(corpus / "tasks" / "sft.jsonl"))
    for name in params.data.files:
        yield from ((f"{name}:{number}", line) for number, line in lines_of(Path(name)))


def _demonstrated(line: str, corpus: Path) -> dict[str, Any]:
    row = parse_row(line, str(corpus / "tasks" / "sft.jsonl"))
    return {"messages": [*row["messages"], {"role": "assistant", "content": row["demonstration"]}], "tools": row.get("tools")}


def _write(part: Path, conversations: list[tuple[array, bytes]], skipped: list[str]) -> None:
    with whole_directory(part) as directory:
        np.save(directory / "ids.npy", np.frombuffer(b"".join(ids.tobytes() for ids, _ in conversations), np.int32))
        np.save(directory / "mask.npy", np.frombuffer(b"".join(mask for _, mask in conversations), np.uint8))
        np.save(directory / "lengths.npy", np.array([len(mask) for _, mask in conversations], np.int32))
        write_json(directory / "skipped.json", skipped)
