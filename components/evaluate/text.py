"""Bits per byte: how well a model predicts held-out text, in a unit that no tokenizer can flatter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """One sequence to be scored: `tokens[scored:]` counts, what stands before is context."""

    tokens: list[int]
    scored: int


def windows(tokens: Sequence[int], start: int, length: int, overlap: int) -> list[Window]:
    """Cut a document into windows such that every one of its tokens is scored exactly once.

    The first window begins with `start` (the end of the document before, as in training), every other one with the last
    `overlap` tokens that have been scored already.

    Args:
        tokens: the document's token ids.
        start: token that the document's first token is conditioned on.
        length: longest window, context included.
        overlap: tokens of context of a later window, 0 < overlap < length.
    """
    stream = [start, *tokens]
    cut = []
    position = 1
    while position < len(stream):
        begin = max(0, position - overlap) if cut else 0
        end = min(begin + length, len(stream))
        cut.append(Window(stream[begin:end], position - begin))
        position = end
    return cut


def bits(window: Window, logprobs: Sequence[float]) -> float:
    """Information content of a window's scored tokens, the sum of -log2 p.

    Args:
        logprobs: natural log-probability of every token of the window after its first.
    """
    return -math.fsum(logprobs[window.scored - 1:]) / math.log(2)


def clip(text: str, limit: int) -> tuple[str, bool]:
    """The first `limit` UTF-8 bytes of a text, cut at a character; and whether the text ended within them."""
    data = text.encode()
    return data[:limit].decode(errors="ignore"), len(data) <= limit
