"""Which sequences share a row: best-fit bin packing (Johnson 1974), of a whole set or of a shuffled stream."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from random import Random

from stagecraft.contract.errors import UserError


def pack_bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distribute items over as few bins as best-fit decreasing finds (within 22% of the optimum, usually far closer).

    Args:
        lengths: in tokens.
        capacity: tokens per bin.

    Returns:
        bins of indices into `lengths`; every index exactly once.

    Raises:
        UserError: an item is longer than a bin.
    """
    check_lengths(lengths, capacity)
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = _best_fit(room, lengths[index])
        if place is None:
            place = (capacity, len(bins))
            bins.append([])
        bins[place[1]].append(index)
        insort(room, (place[0] - lengths[index], place[1]))
    return bins


def pack_stream(lengths: Sequence[int], order: Iterable[int], capacity: int, bins: int) -> Iterator[list[list[int]]]:
    """Groups of `bins` bins, filled in the order given: a group is closed by the first item that fits into none of its bins.

    Unlike packing the whole set by length, this keeps every group a random sample of the items; the last, unfilled one is left out.

    Args:
        lengths, capacity: as for `pack_bins`.
        order: indices into `lengths`, shuffled.

    Raises:
        UserError: an item is longer than a bin.
    """
    check_lengths(lengths, capacity)
    group: list[list[int]] = [[] for _ in range(bins)]
    room = [(capacity, place) for place in range(bins)]
    for index in order:
        fit = _best_fit(room, lengths[index])
        if fit is None:
            yield group
            group = [[] for _ in range(bins)]
            room = [(capacity, place) for place in range(bins)]
            fit = room.pop(0)
        group[fit[1]].append(index)
        insort(room, (fit[0] - lengths[index], fit[1]))


def packs_of_passes(lengths: Sequence[int], capacity: int, count: int, seed: str) -> list[list[int]]:
    """`count` packs, as of `pack_stream` one at a time, in as many passes as it takes, each in another order; items that do not fill one
    are one together.

    Args:
        lengths, capacity: as for `pack_bins`.
        seed: of the orders.

    Raises:
        UserError: an item is longer than a pack.
    """
    packs: list[list[int]] = []
    while len(packs) < count:
        order = list(range(len(lengths)))
        Random(f"{seed}/{len(packs)}").shuffle(order)
        packs += [pack for (pack,) in pack_stream(lengths, order, capacity, 1)] or [order]
    return packs[:count]


def check_lengths(lengths: Sequence[int], capacity: int) -> None:
    """Refuse items that fit into no bin.

    Raises:
        UserError: names the longest.
    """
    if lengths and max(lengths) > capacity:
        raise UserError(f"a conversation of {max(lengths)} tokens does not fit into a pack of {capacity}", where="pack_tokens",
                        mend="raise it, or leave long conversations out")


def _best_fit(room: list[tuple[int, int]], length: int) -> tuple[int, int] | None:
    at = bisect_left(room, (length, -1))
    return room.pop(at) if at < len(room) else None
