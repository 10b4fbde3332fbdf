"""The last gate: a model that passed its own evaluation against the champion that the registry has, prompt by prompt.

The registry keeps what a champion answered, not the champion: so this needs its record alone, and the records must be of one
protocol. The registry calls these functions by name, for it may import no component.
"""

from __future__ import annotations

from typing import Any

from components.evaluate.protocol import differing
from components.evaluate.statistics import Paired, paired


def of_another_protocol(challenger: dict[str, Any], champion: dict[str, Any] | None) -> str | None:
    """Why the two records are no comparison; None if they are one."""
    fields = ["all of it"] if champion is None else differing(challenger["protocol"], champion["protocol"])
    return f"it was measured by another protocol (in {', '.join(fields)})" if fields else None


def objections(challenger: dict[str, Any], champion: dict[str, Any] | None, gone: bool = False) -> list[str]:
    """Why a challenger may not replace the champion; none if it may.

    No task family or benchmark may be worse than the champion by more than `family_max_loss`: the lower confidence bound of the
    paired difference must stay above that limit. All must pass, so no correction for their number is due (an intersection-union
    test, Berger 1982). That limit has to be wide, for a family is few prompts, and a model that lost nearly as much in each of them
    would pass, and the next one after it: so over all prompts together a challenger must not be worse for sure.

    Args:
        challenger: its `record` in promotion.json: {"protocol", "scores": name -> score of each prompt, "rules"}.
        champion: the champion's record; None if the registry has none.
        gone: the champion's model lies no longer where it was registered.
    """
    rules = challenger["rules"]
    if other := of_another_protocol(challenger, champion):
        if rules["other_protocol"] == "replace" or (rules["other_protocol"] == "replace_gone" and gone):
            return []
        return [f"{other}; to replace it without a comparison, set evaluate.gate.other_protocol to replace"]
    found, confidence = [], rules["family_confidence"]
    for name, scores in challenger["scores"].items():
        difference = paired(scores, champion["scores"][name], confidence)
        bound = difference.lower_bound(confidence, most=max(champion["scores"][name]))  # no more can be lost
        if bound < -rules["family_max_loss"]:
            found.append(f"{name} is {_loss(difference)} (lower {confidence:.0%} bound {100 * bound:.1f}, "
                         f"allowed {-100 * rules['family_max_loss']:.1f})")
    if found:
        return found
    ours, theirs = ([score for name in challenger["scores"] for score in record["scores"][name]] for record in (challenger, champion))
    if paired(theirs, ours, confidence).lower_bound(confidence) > 0:
        return [f"over all prompts it is {_loss(paired(ours, theirs, confidence))}, which is sure at {confidence:.0%}"]
    return []


def _loss(difference: Paired) -> str:
    points = 100 * difference.difference
    return f"{abs(points):.1f} ± {100 * difference.stderr:.1f} points {'better' if points > 0 else 'worse'}"
