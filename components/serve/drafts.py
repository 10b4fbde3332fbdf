"""Multi-token prediction: the same tokens as without, and how many drafts the model accepts of itself."""

from __future__ import annotations

import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from components.serve.checks import Answer, CheckFailedError

_PREFIX = "vllm:spec_decode_num_"


def compare(rows: list[dict[str, Any]], plain: list[Answer], drafted: list[Answer], tie: float) -> int:
    """Greedy answers with drafts are those without.

    Verification multiplies other shapes than plain decoding does, so that where two tokens are equally good rounding may pick
    either; such a place, judged by the plain server's own gap, is a tie and no error.

    Returns:
        how many answers are identical, token for token; the others part at a tie.

    Raises:
        CheckFailedError: an answer parts where the plain server was sure.
    """
    identical = 0
    for row, one, other in zip(rows, plain, drafted):
        if one.tokens == other.tokens:
            identical += 1
            continue
        place = next((index for index, pair in enumerate(zip(one.tokens, other.tokens)) if pair[0] != pair[1]),
                     min(len(one.tokens), len(other.tokens)))
        if place >= len(one.gaps) or one.gaps[place] >= tie:
            gap = f"{one.gaps[place]:.3g} nats" if place < len(one.gaps) else "no second token"
            raise CheckFailedError(f"drafts changed the answer to {row['messages'][0]['content']!r} at token {place} (gap to the second "
                                   f"best: {gap}): {one.tokens} without, {other.tokens} with them")
    return identical


def acceptance(url: str, draft_tokens: int) -> dict[str, Any]:
    """What the server's counters say about its drafts, all requests so far.

    Returns:
        `mean_accepted_length`: tokens that one verification step yields on average, 1 + accepted / drafts: the token that the
        verification itself gives counts, as in the published figures; between 1 and 1 + draft_tokens.
        `acceptance_by_position`: share of drafts whose first, second, ... token was accepted. `drafts`: verification steps.

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
    return {
        "mean_accepted_length": 1 + counts["accepted_tokens_total"] / drafts,
        "acceptance_by_position": [accepted.get(position, 0.0) / drafts for position in range(draft_tokens)],
        "drafts": int(drafts),
    }
