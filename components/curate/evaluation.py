"""What no training document may hold: the prompts of the held-out and RL tasks, and the rows of benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stagecraft.contract.errors import UserError
from stagecraft.data.decontamination import count_words
from stagecraft.data.tables import READERS, read_table, strings

TASKS = ("heldout", "rl")
_WORDS = 8  # of a benchmark's text, at least: names of subjects and single answers stand in any document


def evaluation_texts(tasks: dict[str, list[dict[str, Any]]], data: str) -> dict[str, list[str]]:
    """Set -> its texts.

    Args:
        tasks: set -> rows.
        data: directory of benchmarks, "" for none. A file's set is the first folder on the way to it, or its own name. Files whose names
            begin with `train` count only where a set has no others: there they are what is asked (IFEval).

    Raises:
        UserError: no such directory, nothing in it, or a file that cannot be read.
    """
    texts = {name: ["\n".join(message["content"] for message in row["messages"]) for row in tasks[name]] for name in TASKS}
    if not data:
        return texts
    root = Path(data)
    sets: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix in READERS:
            parts = path.relative_to(root).parts
            sets.setdefault(parts[0] if len(parts) > 1 else path.stem, []).append(path)
    if not sets:
        raise UserError(f"no {', '.join(READERS)} file of a benchmark", where=f"curate.benchmarks: {data}",
                        mend="name the folder with the benchmarks' data, or none")
    for name, paths in sets.items():
        asked = [path for path in paths if not path.name.startswith("train")] or paths
        texts.setdefault(name, []).extend(text for path in asked for row in read_table(path) for text in strings(row)
                                          if count_words(text) >= _WORDS)
    return texts
