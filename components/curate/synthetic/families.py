"""The five families of synthetic data, and the category of the blend that each one's documents go to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from components.curate.synthetic import algorithmic, code_concepts, economics, logic, multiple_choice
from components.curate.synthetic.concepts import CONCEPTS
from components.curate.synthetic.item import Item


@dataclass(frozen=True)
class Family:
    """A family.

    Args:
        draw: makes an item from a template.
        category: of its documents.
        topics: what a model is asked to write about.
    """

    draw: Callable[[Random], Item]
    category: str
    topics: tuple[str, ...]


def _of(topics: tuple[Callable[[Random], Item], ...], category: str) -> Family:
    return Family(lambda random: random.choice(topics)(random), category, tuple(topic.__name__.replace("_", " ") for topic in topics))


FAMILIES: dict[str, Family] = {
    code_concepts.FAMILY: Family(code_concepts.draw, "code-sft", tuple(concept.topic for concept in CONCEPTS)),
    algorithmic.FAMILY: _of(algorithmic.TOPICS, "code-sft"),
    logic.FAMILY: _of(logic.TOPICS, "stem-sft"),
    multiple_choice.FAMILY: _of(multiple_choice.TOPICS, "stem-sft"),
    economics.FAMILY: _of(economics.TOPICS, "general-sft"),
}
