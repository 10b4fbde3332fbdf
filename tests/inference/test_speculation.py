"""Drafts change how fast tokens come, never which."""

import pytest
import torch

from stagecraft.inference.engine import Engine
from tests.inference.conftest import LENGTH, SEQUENCES, draw_prompts, greedy, reference_logprobs

PROMPTS = draw_prompts(20, seed=2)


@pytest.mark.parametrize("draft_tokens", [1, 2, 3])
def test_greedy_answers_do_not_depend_on_drafts(checkpoint, transformer, draft_tokens):
    with Engine(checkpoint, max_model_len=LENGTH, max_num_seqs=SEQUENCES, draft_tokens=draft_tokens) as engine:
        answers = engine.generate(PROMPTS, temperature=0, max_tokens=16)
        assert [completion.token_ids for completion, in answers] == [greedy(transformer, prompt, 16) for prompt in PROMPTS]
        drafts, drafted, accepted = engine.draft_statistics()
        assert drafted == draft_tokens * drafts > 0 and len(accepted) == draft_tokens
        if draft_tokens < 3:
            return
        asked = {"temperature": 0.7, "max_tokens": 12, "seed": 4, "logprobs": True}
        sampled = engine.generate(PROMPTS, **asked)
        assert engine.generate(PROMPTS, **asked) == sampled
        for prompt, (completion,) in zip(PROMPTS, sampled):
            expected = reference_logprobs(transformer, prompt + completion.token_ids, 0.7)[-len(completion.token_ids):]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)
