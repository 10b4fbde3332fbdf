"""A prompt of one token that joins a batch under way, with drafts.

Upstream: v1/core/sched/scheduler.py:1134 (`Scheduler.schedule`) gives such a request placeholders for drafts, so that every row of a
CUDA graph is as long. That is meant for the last token of a prompt that came from elsewhere, whose Mamba state is there: the
placeholders are rejected, and the state goes back. Of a prompt that begins here nothing is computed yet, so
v1/attention/backends/mamba_attn.py:424 has it prefilled, placeholders and all, and a prefill keeps its last state only: the first
token is right, every later one comes from a state that has seen tokens which are not there. On a CPU there are no graphs to fill.
"""

from __future__ import annotations

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler


def mend() -> None:
    upstream = Scheduler._update_after_schedule

    def update(self: Scheduler, output: SchedulerOutput) -> None:
        """Before the step's tokens are counted as computed: no drafts for a request of which nothing is computed."""
        for name in [name for name in output.scheduled_spec_decode_tokens if self.requests[name].num_computed_tokens == 0]:
            padding = len(output.scheduled_spec_decode_tokens.pop(name))
            output.num_scheduled_tokens[name] -= padding
            output.total_num_scheduled_tokens -= padding
        upstream(self, output)

    Scheduler._update_after_schedule = update
