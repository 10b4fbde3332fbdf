"""Conversations that show how to play an environment, for fine-tuning: `python -m stagecraft.environments.demonstrations NAME COUNT SEED`.

They are the environment's own solutions of rows drawn from a seed, one JSON line each in the OpenAI messages format.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from random import Random
from typing import Any

from stagecraft.contract.errors import exit_on_user_error
from stagecraft.environments.episode import chat_request, converse, script
from stagecraft.environments.library import environment


def demonstrations(name: str, count: int, seed: int | str) -> Iterator[dict[str, Any]]:
    """`count` conversations with a built-in environment: {"messages": [...], "tools": [...]}.

    Raises:
        UserError: there is no such environment.
    """
    source, random = environment(name), Random(f"{seed}/demonstrations/{name}")
    for _ in range(count):
        row = source.draw(random)
        episode = converse(source, row, script(source.reference(row)), source.turns)
        yield {"messages": episode.messages, "tools": chat_request(row)[1]}


def main() -> None:
    """Write the conversations asked for to the standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("count", type=int)
    parser.add_argument("seed", type=int)
    given = parser.parse_args()
    for row in demonstrations(given.name, given.count, given.seed):
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    exit_on_user_error(main)
