"""SQL against a real SQLite database, in the sandbox: a short query can make SQLite itself take all memory before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from stagecraft.data.tasks.words import CITIES, NAMES, NOUNS
from stagecraft.environments.api import Environment, Item, LocalSession, Row, tool
from stagecraft.environments.items import last_message
from stagecraft.environments.library import queries
from stagecraft.environments.reward import Reward
from stagecraft.environments.sandbox import call_confined
from stagecraft.environments.written import write_call

_SCHEMA = "CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, city TEXT, age INTEGER);\n" \
          "CREATE TABLE orders (id INTEGER PRIMARY KEY, person INTEGER REFERENCES people(id), item TEXT, amount INTEGER);"


class Sql(Environment):
    """A question whose answer is a query. It is judged on the database shown and on one of other contents that the policy never sees."""

    name = "sql"
    turns = 4
    confined = True

    def draw(self, random: Random) -> Row:
        """As in `Environment`."""
        while True:
            city, item, age = random.choice(CITIES[:4]), random.choice(NOUNS[:4]), random.randint(25, 60)
            asked, query, rival = random.choice([
                (f"How many people live in {city}?", f"SELECT count(*) FROM people WHERE city = '{city}'", "SELECT count(*) FROM people"),
                (f"Which names have the people older than {age}, by the alphabet?",
                 f"SELECT name FROM people WHERE age > {age} ORDER BY name",
                 f"SELECT name FROM people WHERE age > {age} ORDER BY name DESC"),
                (f"How much of {item} was ordered in all, 0 if none was?",
                 f"SELECT coalesce(sum(amount), 0) FROM orders WHERE item = '{item}'",
                 f"SELECT count(*) FROM orders WHERE item = '{item}'"),
                (f"Which people's names are on an order of {item}, each once?",
                 f"SELECT DISTINCT name FROM people JOIN orders ON person = people.id WHERE item = '{item}'",
                 "SELECT DISTINCT name FROM people JOIN orders ON person = people.id")])
            seeds = random.randrange(2**30), random.randrange(2**30)
            row = self.row(f"{asked} The tables:\n{_SCHEMA}\nAnswer with one SQL query alone.",
                           [tool("query", "Run a SELECT.", sql="string")],
                           databases=seeds, query=query, rival=rival, ordered="ORDER BY" in query)
            right, wrong = _known(row, query), _known(row, rival)
            if right != wrong and right[0] != right[1] and all(right):
                return row

    def seed(self, row: Row) -> LocalSession:
        """As in `Environment`."""
        return _Querying(row)

    def reference(self, row: Row) -> list[str]:
        """As in `Environment`."""
        return [write_call("query", sql="SELECT * FROM people LIMIT 3"), row["query"]]

    def near_misses(self, row: Row) -> list[list[str]]:
        """As in `Environment`: a rival, the shown database's answer as a constant, and what is not one SELECT."""
        shown = _known(row, row["query"])[0]
        constant = " UNION ALL ".join("SELECT " + ", ".join(map(repr, values)) for values in shown)
        return [[row["rival"]], [constant], [row["query"] + "; " + row["query"]], ["DROP TABLE people"],
                ["It is " + row["query"]], [""]]


class _Querying(LocalSession):
    def __init__(self, row: Row):
        super().__init__(row["responses_create_params"]["tools"], {"query": self._query})
        self._row = row

    def _query(self, sql: str) -> list[list[object]]:
        (found,) = ask(self._row["databases"][:1], sql)
        if "error" in found:
            raise ValueError(found["error"])
        return found["rows"]

    def verify(self, output: list[Item]) -> Reward:
        right = _known(self._row, self._row["query"])
        found = [_compared(self._row, each["rows"]) if "rows" in each else None
                 for each in ask(self._row["databases"], last_message(output))]
        correct = float(found == right)
        return Reward(correct, {"runs": float(None not in found), "shown": float(found[0] == right[0]), "correct": correct})


def _known(row: Row, sql: str) -> list[list[list[object]]]:
    """What a query of ours gives on both databases."""
    return [_compared(row, queries.answer(script(seed), sql)["rows"]) for seed in row["databases"]]


def _compared(row: Row, rows: list[list[object]]) -> list[list[object]]:
    return rows if row["ordered"] else sorted(rows, key=repr)


def script(seed: int) -> str:
    """SQL that makes a database and fills it."""
    random = Random(f"{seed}/sql")
    people = random.sample(NAMES, random.randint(6, 12))
    rows = [("people", number, name, random.choice(CITIES[:4]), random.randint(18, 80)) for number, name in enumerate(people, 1)]
    rows += [("orders", number, random.randint(1, len(people)), random.choice(NOUNS[:4]), random.randint(1, 20)) for number in range(1, 16)]
    return _SCHEMA + "".join(f"\nINSERT INTO {table} VALUES {tuple(values)};" for table, *values in rows)


def ask(seeds: Sequence[int], sql: str) -> list[dict[str, Any]]:
    """What a policy's query gives on each database: {"rows": ...} or {"error": ...}."""
    files = {"queries.py": Path(queries.__file__).read_text()}
    found, reason = call_confined(files, "queries", "answer", [[script(seed), sql] for seed in seeds])
    failed = {"error": reason or "the query takes too much"}
    return [each["value"] if each and "value" in each else failed for each in found]
