"""SQL against a real SQLite database: opened read-only, nothing but SELECT authorised, steps and rows bounded."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from stagecraft.data.tasks.words import CITIES, NAMES, NOUNS
from stagecraft.environments.api import Environment, Item, LocalSession, Row, tool
from stagecraft.environments.items import last_message, write_call
from stagecraft.environments.reward import Reward

_SCHEMA = "CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, city TEXT, age INTEGER);\n" \
          "CREATE TABLE orders (id INTEGER PRIMARY KEY, person INTEGER REFERENCES people(id), item TEXT, amount INTEGER);"
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_SECONDS, _ROWS, _BYTES = 0.5, 1000, 100_000


class Sql(Environment):
    """A question whose answer is a query. It is judged on the database shown and on one of other contents that the policy never sees."""

    name = "sql"
    turns = 4

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
            right, wrong = _answers(row, query), _answers(row, rival)
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
        shown = _answers(row, row["query"])[0]
        constant = " UNION ALL ".join("SELECT " + ", ".join(map(repr, values)) for values in shown)
        return [[row["rival"]], [constant], [row["query"] + "; " + row["query"]], ["DROP TABLE people"],
                ["It is " + row["query"]], [""]]


class _Querying(LocalSession):
    def __init__(self, row: Row):
        super().__init__(row["responses_create_params"]["tools"], {"query": self._query})
        self._row = row

    def _query(self, sql: str) -> list[tuple[object, ...]]:
        with database(self._row["databases"][0]) as shown:
            return select(shown, sql)

    def verify(self, output: list[Item]) -> Reward:
        sql = last_message(output)
        right, found = _answers(self._row, self._row["query"]), _answers(self._row, sql)
        correct = float(found == right)
        return Reward(correct, {"runs": float(None not in found), "shown": float(found[0] == right[0]), "correct": correct})


def _answers(row: Row, sql: str) -> list[list[tuple[object, ...]] | None]:
    """What a query gives on both databases; None where it fails."""
    answers: list[list[tuple[object, ...]] | None] = []
    for seed in row["databases"]:
        with database(seed) as connection:
            try:
                found = select(connection, sql)
            except ValueError:
                answers.append(None)
            else:
                answers.append(found if row["ordered"] else sorted(found, key=repr))
    return answers


@contextlib.contextmanager
def database(seed: int) -> Iterator[sqlite3.Connection]:
    """A filled database, opened for reading."""
    random = Random(f"{seed}/sql")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "shop.db"
        with contextlib.closing(sqlite3.connect(path)) as writer:
            writer.executescript("PRAGMA journal_mode=MEMORY; PRAGMA synchronous=OFF;" + _SCHEMA)
            people = random.sample(NAMES, random.randint(6, 12))
            writer.executemany("INSERT INTO people VALUES (?, ?, ?, ?)", [
                (number, name, random.choice(CITIES[:4]), random.randint(18, 80)) for number, name in enumerate(people, 1)])
            writer.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", [
                (number, random.randint(1, len(people)), random.choice(NOUNS[:4]), random.randint(1, 20)) for number in range(1, 16)])
            writer.commit()
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as reader:
            yield reader


def select(connection: sqlite3.Connection, sql: str) -> list[tuple[object, ...]]:
    """The rows of one SELECT.

    Raises:
        ValueError: it is none, fails, takes too long or gives too much.
    """
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _BYTES)
    deadline = time.monotonic() + _SECONDS
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
    try:
        rows = connection.execute(sql).fetchmany(_ROWS + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        raise ValueError(str(error)) from None
    if len(rows) > _ROWS:
        raise ValueError(f"more than {_ROWS} rows")
    return rows
