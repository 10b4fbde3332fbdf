"""Instructions whose keeping a program can check, in the manner of IFEval (arXiv 2311.07911)."""

from __future__ import annotations

from random import Random
from typing import Any

from stagecraft.environments.api import Row
from stagecraft.environments.constraints import draw_request, held
from stagecraft.environments.library.single import SingleTurn


class Following(SingleTurn):
    """One or two constraints on a free text; the score asks for all of them, a part tells the share."""

    name = "instruction_following"

    def draw(self, random: Random) -> Row:
        """As in `Environment`."""
        while True:  # two constraints on one word may exclude or include each other
            prompt, names, arguments = draw_request(random, random.randint(1, 2))
            row = self.row(prompt, expected={"names": names, "arguments": arguments})
            tried = [self.judge(row["expected"], text)["correct"] for (text,) in [self.reference(row), *self.near_misses(row)]]
            if tried[0] and not any(tried[1:]):
                return row

    def judge(self, expected: Any, answer: str) -> dict[str, float]:
        """As in `SingleTurn`."""
        found = held(answer, expected["names"], expected["arguments"])
        return {"share": sum(found) / len(found), "correct": float(all(found))}

    def reference(self, row: Row) -> list[str]:
        """As in `Environment`."""
        return [_text(dict(zip(row["expected"]["names"], row["expected"]["arguments"])))]

    def near_misses(self, row: Row) -> list[list[str]]:
        """As in `Environment`: each constraint broken by itself."""
        wanted = dict(zip(row["expected"]["names"], row["expected"]["arguments"]))
        return [[""], *([_text(wanted, broken=name)] for name in wanted)]


def _text(wanted: dict[str, dict[str, Any]], broken: str = "") -> str:
    """A text that keeps the constraints drawn here, but for one."""
    kept = {name: arguments for name, arguments in wanted.items() if name != broken}
    bullets = kept.get("detectable_format:number_bullet_lists", {}).get("num_bullets", 0)
    text = "\n".join(["- so"] * bullets) or "so"
    if "keywords:existence" in kept:
        text += f" {kept['keywords:existence']['keywords'][0]}"
    if broken == "keywords:forbidden_words":
        text += f" {wanted[broken]['forbidden_words'][0]}"
    if broken == "punctuation:no_comma":
        text += ", so"
    if broken == "length_constraints:number_words":
        text += " so" * 10
    if "startend:end_checker" in kept:
        text += f" {kept['startend:end_checker']['end_phrase']}"
    return f'"\n{text}\n"' if "startend:quotation" in kept else text
