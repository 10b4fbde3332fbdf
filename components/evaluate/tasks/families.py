"""The held-out task rows of the corpus artifact as documents of lm-eval, judged by the verifiers that reward the model in RL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from components.evaluate.workload import evenly
from stagecraft.contract.stages import PATHS
from stagecraft.data.tasks import read_rows
from stagecraft.environments import verify


def rows(*, prompts: int, **_: Any) -> dict[str, list[dict[str, Any]]]:
    """{"test": docs}: "prompt", "family", "tools" and the whole "row", the last two as JSON, for their shapes differ by family.

    Raises:
        UserError: there is no corpus artifact.
    """
    chosen = evenly(read_rows(PATHS["corpus"] / "tasks" / "heldout.jsonl"), prompts)
    return {"test": [{"prompt": row["messages"][-1]["content"], "family": row["family"], "row": json.dumps(row),
                      "tools": json.dumps(row["tools"]) if row.get("tools") else ""} for row in chosen]}


def verified(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the row's verifier accepts the answer."""
    return {"correct": verify(json.loads(document["row"]), results[0]).score}
