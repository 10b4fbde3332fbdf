"""Shares with the interval that the number of tries allows, for the tests against planted truth."""

from math import sqrt


def wilson(hits: int, tries: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson 1927)."""
    centre, spread = hits + z * z / 2, z * sqrt(hits * (tries - hits) / tries + z * z / 4)
    return (centre - spread) / (tries + z * z), (centre + spread) / (tries + z * z)


def recall_and_precision(what: str, found: int, planted: int, wrong: int) -> tuple[float, float]:
    """Lower ends of the intervals of recall and precision; both are printed.

    Args:
        found: of the `planted` things.
        wrong: found where nothing was planted.
    """
    return lower_end(f"{what}: recall", found, planted), lower_end(f"{what}: precision", found, found + wrong)


def lower_end(what: str, hits: int, tries: int) -> float:
    """Lower end of the interval of a share, which is printed."""
    low, high = wilson(hits, tries)
    print(f"{what} {hits}/{tries} = {hits / tries:.3f} [{low:.3f}, {high:.3f}]")
    return low
