"""Which prompts are asked at which step, and by whom: those that fit, in the mixture wanted, shuffled or by difficulty."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from components.rl.params import Stage
from stagecraft.contract.errors import UserError
from stagecraft.data.chat import encode_prompt
from stagecraft.data.tasks import read_rows
from stagecraft.environments.episode import chat_request
from stagecraft.environments.library import environment

Row = dict[str, Any]


def read_prompts(path: Path, tokenizer: Any, params: Stage) -> list[Row]:
    """The task rows whose prompt fits, as many of each family as the mixture gives it, and those of the environments.

    A family keeps the share of its rows that its weight is of the largest weight; a family that is not named weighs 1.

    Raises:
        UserError: a family of the mixture has no rows, an environment is unknown, or no prompt is left.
    """
    def fit(rows: Iterable[Row]) -> list[Row]:
        return [row for row in rows if len(encode_prompt(tokenizer, row)) <= params.max_prompt_tokens]

    rows = fit(read_rows(path))
    counts = Counter(row["family"] for row in rows)
    if unknown := sorted(set(params.mixture) - set(counts)):
        raise UserError(f"no prompts of family {unknown[0]!r}", where="rl.mixture", mend=f"name some of {', '.join(sorted(counts))}")
    weights = {family: params.mixture.get(family, 1.0) for family in counts}
    most = max(weights.values(), default=0.0)
    left = {family: round(counts[family] * weight / most) if most else 0 for family, weight in weights.items()}
    kept = []
    for row in rows:
        left[row["family"]] -= 1
        if left[row["family"]] >= 0:
            kept.append(row)
    for name, weight in params.environments.items():
        count, server = round(params.environment_prompts * weight), params.environment_servers.get(name)
        draw = partial(file_rows, Path(server.rows)) if server and server.rows else environment_rows
        drawn = fit(draw(name, count, f"{params.seed}/{name}"))
        if not drawn:
            raise UserError(f"no prompt of at most {params.max_prompt_tokens} tokens", where=f"rl.environments.{name}",
                            mend="raise rl.max_prompt_tokens or rl.environment_prompts")
        kept += drawn
    if not kept:
        raise UserError(f"no prompt of at most {params.max_prompt_tokens} tokens", where=str(path),
                        mend="raise rl.max_prompt_tokens, curate.tasks.rl_rows or a weight of rl.mixture")
    return kept


def environment_rows(name: str, count: int, seed: str) -> list[Row]:
    """Rows drawn from a built-in environment, in the form of task rows; `drawn` is what the environment itself wants to see.

    Raises:
        UserError: there is no such environment.
    """
    source, generator = environment(name), random.Random(seed)
    return [_row(name, number, source.draw(generator)) for number in range(count)]


def file_rows(path: Path, name: str, count: int, seed: str) -> list[Row]:
    """At most `count` rows of a file in NeMo Gym's format, drawn without putting back, in the form of task rows.

    Raises:
        UserError: the file cannot be read; a row that is none, by its line.
    """
    try:
        # Not splitlines(): a JSON string may hold U+2028 as it is.
        lines = [(number, line) for number, line in enumerate(path.read_text("utf-8").split("\n"), 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read rows: {error}", where=str(path), mend=f"correct rl.environment_servers.{name}.rows") from None
    rows = []
    for number, line in sorted(random.Random(seed).sample(lines, min(count, len(lines)))):
        try:
            rows.append(row := _row(name, number, json.loads(line)))
            json.dumps([row["messages"], row["tools"]], ensure_ascii=False).encode()  # no tokenizer takes half of a surrogate pair
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"no row of NeMo Gym: {type(error).__name__}: {error}", where=f"{path}:{number}",
                            mend="give it responses_create_params with messages in input") from None
    return rows


def _row(name: str, number: int, drawn: Row) -> Row:
    messages, tools = chat_request(drawn)
    # An environment may be called as a family of the corpus is: no id of one is an id of the other.
    return {"id": f"environment/{name}-{number:06d}", "family": name, "messages": messages, "tools": tools, "drawn": drawn}


def by_difficulty(rows: list[Row], solved: dict[str, float], drop_above: float) -> list[Row]:
    """The rows that are solved in at most the share `drop_above` of tries, the easiest first.

    Raises:
        UserError: none is left.
    """
    kept = sorted((row for row in rows if solved[row["id"]] <= drop_above), key=lambda row: (-solved[row["id"]], row["id"]))
    if not kept:
        raise UserError(f"every prompt is solved more often than {drop_above}", where="rl.curriculum.drop_above", mend="raise it")
    return kept


def pick(rows: list[Row], step: int, params: Stage) -> list[Row]:
    """The prompts of a step: a new shuffle for every pass over the rows.

    Under a curriculum the first pass follows the order of difficulty, spread over the steps there are: a step draws its prompts evenly
    from its stretch of the rows.
    """
    if params.curriculum.samples:
        start, end = (len(rows) * edge // params.steps for edge in (step, step + 1))
        stretch = rows[start:max(end, start + 1)]
        more = order(len(stretch), params.seed, step)
        return [stretch[more[at % len(stretch)]] for at in range(params.prompts_per_step)]
    positions = range(step * params.prompts_per_step, (step + 1) * params.prompts_per_step)
    return [rows[order(len(rows), params.seed, at // len(rows))[at % len(rows)]] for at in positions]


def share(count: int, worker: int, workers: int) -> range:
    """Which of `count` prompts one of the workers draws: neighbours, of which no worker has two more than another."""
    return range(count * worker // workers, count * (worker + 1) // workers)


@lru_cache(maxsize=2)
def order(count: int, seed: int, epoch: int) -> list[int]:
    """The shuffle of one pass."""
    shuffled = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(shuffled)
    return shuffled
