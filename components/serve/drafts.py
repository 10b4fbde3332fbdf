"""Multi-token prediction: the same tokens as without, and how many drafts the model accepts of itself."""

from __future__ import annotations

import math
import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from components.serve.checks import Answer, CheckFailedError

_PREFIX = "vllm:spec_decode_num_"


def noise(alone: list[Answer], together: list[Answer]) -> float:
    """How far rounding alone moves the gap between the two best tokens, in nats.

    Args:
        alone, together: answers of the server without drafts, asked one by one and all at once: equal but for the shapes of the
            products. In float32 this is 1e-5; where activations are quantised, a value that rounds the other way moves much more.
    """
    moved = [0.0]
    for one, other in zip(alone, together):
        place = _parting(one, other)
        moved += [abs(x - y) for x, y in zip(one.gaps[:place], other.gaps[:place])]
        if place < min(len(one.gaps), len(other.gaps)):
            moved.append(one.gaps[place] + other.gaps[place])  # the two best have changed places
    return max(moved)


def compare(rows: list[dict[str, Any]], plain: list[Answer], drafted: list[Answer], tie: float) -> float:
    """Greedy answers with drafts are those without.

    Verification multiplies other shapes than plain decoding does, so that where two tokens are nearly as good rounding may pick
    either; such a place, judged by the plain server's own gap, is a tie and no error.

    Args:
        rows: what was asked.
        plain: answers without drafts, with gaps.
        drafted: answers with drafts.
        tie: nats below which a gap is a tie.

    Returns:
        the share of answers that are identical, token for token; the others part at a tie.

    Raises:
        CheckFailedError: an answer parts where the plain server was sure, or most of them part.
    """
    parted = 0
    for row, one, other in zip(rows, plain, drafted):
        if one.tokens == other.tokens:
            continue
        place = _parting(one, other)
        if place >= len(one.gaps) or one.gaps[place] >= tie:
            gap = f"{one.gaps[place]:.3g} nats" if place < len(one.gaps) else "no second token"
            raise CheckFailedError(f"drafts changed the answer to {row['messages'][0]['content']!r} at token {place} (gap to the second "
                                   f"best: {gap}, a tie is below {tie:.3g}): {one.tokens} without, {other.tokens} with them")
        parted += 1
    if 2 * parted > len(rows):
        raise CheckFailedError(f"drafts changed {parted} of {len(rows)} answers; rounding does not do that")
    return 1 - parted / len(rows)


def _parting(one: Answer, other: Answer) -> int:
    """The first position whose tokens differ; the shorter length if there is none."""
    pairs = enumerate(zip(one.tokens, other.tokens))
    return next((place for place, (x, y) in pairs if x != y), min(len(one.tokens), len(other.tokens)))


def acceptance(url: str, draft_tokens: int) -> dict[str, Any]:
    """What the server's counters say about its drafts, all requests so far.

    Returns:
        `mean_accepted_length`: tokens that one verification step yields on average, 1 + accepted / drafts: the token that the
        verification itself gives counts, as in the published figures; between 1 and 1 + draft_tokens.
        `acceptance_by_position`: share of drafts whose first, second, ... token was accepted. `drafts`: verification steps.
        Both with `_stderr`, of the steps as independent draws: the server does not count them by answer, whose steps go together.

    Raises:
        CheckFailedError: the server has drafted nothing.
    """
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
        samples = [sample for family in families for sample in family.samples if sample.name.startswith(_PREFIX)]
    counts = {sample.name.removeprefix(_PREFIX): sample.value for sample in samples if "position" not in sample.labels}
    drafts = counts.get("drafts_total", 0)
    if not drafts:
        raise CheckFailedError(f"{url}/metrics counts no drafts: speculative decoding is not at work")
    accepted = {int(sample.labels["position"]): sample.value for sample in samples
                if sample.name == f"{_PREFIX}accepted_tokens_per_pos_total"}
    shares = [accepted.get(position, 0.0) / drafts for position in range(draft_tokens)]
    # Of the number N of accepted tokens these are P(N > 0), P(N > 1), ...: E N is their sum, E N^2 that of each (2 position + 1) times.
    mean, square = sum(shares), sum((2 * position + 1) * share for position, share in enumerate(shares))
    return {
        "mean_accepted_length": 1 + counts["accepted_tokens_total"] / drafts,
        "mean_accepted_length_stderr": math.sqrt(max(0.0, square - mean**2) / drafts),
        "acceptance_by_position": shares,
        "acceptance_by_position_stderr": [math.sqrt(share * (1 - share) / drafts) for share in shares],
        "drafts": int(drafts),
    }
