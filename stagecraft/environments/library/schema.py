"""Facts into a JSON object of a given schema."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from jsonschema import Draft202012Validator

from stagecraft.data.tasks.words import CITIES, NAMES, NOUNS
from stagecraft.environments.api import Row
from stagecraft.environments.library.single import SingleTurn
from stagecraft.environments.written import object_without_duplicates


class Schema(SingleTurn):
    """The answer is one JSON object, valid and true; text around it, a fence included, is none."""

    name = "json_schema"

    def draw(self, random: Random) -> Row:
        """As in `Environment`."""
        name, city, age = random.choice(NAMES), random.choice(CITIES), random.randint(18, 90)
        owns = random.sample(NOUNS, random.randint(1, 3))
        facts = {"name": ({"type": "string"}, name, f"{name} is {age} years old."),
                 "age": ({"type": "integer", "minimum": 0, "maximum": 150}, age, ""),
                 "city": ({"enum": sorted({city, *random.sample(CITIES, 3)})}, city, f"{name} lives in {city}."),
                 "owns": ({"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True}, owns,
                          f"{name} owns these: {', '.join(owns)}.")}
        keys = ["name", "age", *random.sample(["city", "owns"], random.randint(1, 2))]
        schema = {"type": "object", "properties": {key: facts[key][0] for key in keys}, "required": keys, "additionalProperties": False}
        told = " ".join(facts[key][2] for key in keys if facts[key][2])
        return self.row(f"{told}\nAnswer with one JSON object of this schema, lists in the order told: {json.dumps(schema)}",
                        expected={"schema": schema, "value": {key: facts[key][1] for key in keys}})

    def judge(self, expected: Any, answer: str) -> dict[str, float]:
        """As in `SingleTurn`."""
        try:
            value = json.loads(answer, object_pairs_hook=object_without_duplicates)
        except (ValueError, RecursionError):
            return {"json": 0.0, "valid": 0.0, "correct": 0.0}
        valid = float(Draft202012Validator(expected["schema"]).is_valid(value))
        same = json.dumps(value, sort_keys=True) == json.dumps(expected["value"], sort_keys=True)
        return {"json": 1.0, "valid": valid, "correct": valid * same}

    def reference(self, row: Row) -> list[str]:
        """As in `Environment`."""
        return [json.dumps(row["expected"]["value"])]

    def near_misses(self, row: Row) -> list[list[str]]:
        """As in `Environment`."""
        value = row["expected"]["value"]
        wrong = [{**value, "age": str(value["age"])}, {**value, "note": ""}, {**value, "age": value["age"] + 1}, {"name": value["name"]},
                 [value]]
        return [[json.dumps(each)] for each in wrong] + [[f"```json\n{json.dumps(value)}\n```"], [json.dumps(value)[:-1]], [""]]
