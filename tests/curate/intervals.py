"""Shares with the interval that the number of tries allows, for the tests against planted truth."""

from components.evaluate.statistics import wilson


def recall_and_precision(what: str, found: int, planted: int, wrong: int) -> tuple[float, float]:
    """Lower ends of the intervals of recall and precision; both are printed.

    Args:
        found: of the `planted` things.
        wrong: found where nothing was planted.
    """
    return lower_end(f"{what}: recall", found, planted), lower_end(f"{what}: precision", found, found + wrong)


def lower_end(what: str, hits: int, tries: int) -> float:
    """Lower end of the interval of a share, which is printed."""
    low, high = wilson(hits, tries, 0.95)
    print(f"{what} {hits}/{tries} = {hits / tries:.3f} [{low:.3f}, {high:.3f}]")
    return low
