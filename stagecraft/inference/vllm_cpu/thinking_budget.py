"""A thinking budget with drafts: no second `</think>` where the model ends its thinking by itself.

Upstream: vllm/v1/sample/thinking_budget_state.py:415 decides before a verification that the budget ends within its drafts, and forces
`</think>` at that place, without a look at whether a draft before it ends the thinking already. If that is accepted, the answer begins with
another `</think>`: malformed, and not what the model says without drafts.

Here the decision waits for the next step if such a draft is there: accepted, it ends the thinking; rejected, the budget still holds, for
the token that takes its place lies within it.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder


def mend() -> None:
    """Look at the drafts before the place where the end is to be forced."""
    upstream = ThinkingBudgetStateHolder._update_think_state

    def update(self: ThinkingBudgetStateHolder, state: dict[str, Any]) -> None:
        upstream(self, state)
        if not state["in_end"] or state["end_count"] or not state["force_index"]:
            return
        drafts = state["spec_token_ids"][:state["force_index"][0]]
        if self._find_last_sequence_index(drafts, self.think_end_token_ids) >= 0:
            left = state["thinking_token_budget"] - state["think_count"]
            state.update(in_end=False, in_think=True, force_index=[], check_count_down=left)

    ThinkingBudgetStateHolder._update_think_state = update
