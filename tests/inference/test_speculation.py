"""Drafts change how fast tokens come, never which, nor how often: by a model whose drafts are accepted at times."""

import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import vllm
from scipy import stats
from vllm import SamplingParams
from vllm.config import ReasoningConfig
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.sample import rejection_sampler
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

from stagecraft.inference import vllm_cpu
from stagecraft.inference.engine import Engine
from stagecraft.inference.memory import served_config
from tests.checkpoints import VOCABULARY
from tests.inference.conftest import LENGTH, SEQUENCES, draw_prompts, greedy, reference_logprobs

PROMPTS = draw_prompts(41, seed=2)  # one of them a single token
BEGINS_ALIKE = 39  # a token that, as the last of a prompt, gives most answers the same beginning
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def expected(reference):
    return [greedy(reference, prompt, 16) for prompt in PROMPTS]


@pytest.mark.parametrize("draft_tokens", [1, 3, 7])
def test_greedy_answers_do_not_depend_on_drafts(foreseeing, expected, draft_tokens):
    with Engine(foreseeing, max_model_len=LENGTH, max_num_seqs=SEQUENCES, draft_tokens=draft_tokens) as engine:
        answers = engine.generate(PROMPTS, temperature=0, max_tokens=16)
        assert [completion.token_ids for completion, in answers] == expected
        drafts, drafted, accepted = engine.draft_statistics()
        assert drafted == draft_tokens * drafts > 0 and len(accepted) == draft_tokens
        assert accepted == sorted(accepted, reverse=True) and 0.1 * drafts < accepted[0] < drafts
        assert accepted[min(draft_tokens, 3) - 1] > 0  # not the first draft only
        # Alone, and no `top_p` beside: its first step has no draft to choose the likeliest tokens for.
        (alone,) = engine._run(PROMPTS[:1], [SamplingParams(temperature=1, top_k=1, max_tokens=16)])
        assert list(alone.outputs[0].token_ids) == expected[0]


def test_a_model_drafts_in_another_type_than_its_checkpoints(foreseeing):
    assert served_config(foreseeing)["dtype"] == "float32"
    with Engine(foreseeing, max_model_len=LENGTH, max_num_seqs=SEQUENCES, draft_tokens=2, dtype="bfloat16") as engine:
        assert all(len(completion.token_ids) == 16 for completion, in engine.generate(PROMPTS[:4], temperature=0, max_tokens=16))
        drafts, _, accepted = engine.draft_statistics()
        assert 0 < accepted[0] <= drafts


@pytest.mark.parametrize("draft_tokens", [1, 3])
def test_short_prompts_that_join_a_batch_under_way(foreseeing, reference, draft_tokens):
    """As long as a step with drafts, or shorter: nothing of a prompt may be taken for a draft, nor a draft for a prompt."""
    draw = random.Random(5)
    prompts = PROMPTS[:SEQUENCES] + [[draw.randrange(5, VOCABULARY) for _ in range(length)] for length in (1, 1, 2, 3, 4, 5, 1, 2)]
    with Engine(foreseeing, max_model_len=LENGTH, max_num_seqs=SEQUENCES, draft_tokens=draft_tokens) as engine:
        answers = engine.generate(prompts, temperature=0, max_tokens=8)
    assert [completion.token_ids for completion, in answers] == [greedy(reference, prompt, 8) for prompt in prompts]


def test_prompts_that_end_in_a_chunk_of_one_token(foreseeing, reference, monkeypatch):
    """A step takes 24 tokens, and what others leave of that is the next chunk of a prompt: every length of a last chunk occurs."""
    from vllm.v1.core.sched.scheduler import Scheduler

    monkeypatch.setattr(vllm, "LLM", lambda upstream=vllm.LLM, **arguments: upstream(**{**arguments, "max_num_batched_tokens": 24}))
    draw, last_chunks, counted = random.Random(7), set(), Scheduler._update_after_schedule

    def watched(self: Scheduler, output: SchedulerOutput) -> None:
        for name, tokens in output.num_scheduled_tokens.items():
            request = self.requests[name]
            if 0 < request.num_computed_tokens < request.num_prompt_tokens == request.num_computed_tokens + tokens:
                last_chunks.add(tokens)
        counted(self, output)

    prompts = [[draw.randrange(5, VOCABULARY) for _ in range(length)] for length in range(20, 60)]
    with Engine(foreseeing, max_model_len=LENGTH, max_num_seqs=2, draft_tokens=3) as engine:
        monkeypatch.setattr(Scheduler, "_update_after_schedule", watched)
        answers = engine.generate(prompts, temperature=0, max_tokens=8)
    assert {1, 2, 3, 4} <= last_chunks
    assert [completion.token_ids for completion, in answers] == [greedy(reference, prompt, 8) for prompt in prompts]


@pytest.fixture(scope="module")
def thoughts(reference):
    """Prompts that most answers to begin alike, the answers, and two tokens that most of them begin with: thinking lies between them."""
    prompts = [[*prompt, BEGINS_ALIKE] for prompt in PROMPTS[:SEQUENCES]]
    answers = [greedy(reference, prompt, 8) for prompt in prompts]
    (tags, _), = Counter((answer[0], answer[2]) for answer in answers).most_common(1)
    assert sum((answer[0], answer[2]) == tags for answer in answers) > SEQUENCES // 4
    return prompts, answers, tags


@pytest.mark.parametrize("draft_tokens", [0, 1, 3])
def test_a_thinking_budget_ends_the_thinking_and_nothing_else(foreseeing, reference, thoughts, draft_tokens, monkeypatch):
    """Whether it is the budget that ends the thinking, or the model just before it or at its edge."""
    prompts, answers, (opens, closes) = thoughts
    tags = ReasoningConfig(reasoning_start_str="unused", reasoning_end_str="unused")
    tags._reasoning_start_token_ids, tags._reasoning_end_token_ids, tags._natural_reasoning_end_token_ids = [opens], [closes], [closes]
    monkeypatch.setattr(vllm, "LLM", lambda upstream=vllm.LLM, **arguments: upstream(**arguments, reasoning_config=tags))
    cut = []
    with Engine(foreseeing, max_model_len=LENGTH, max_num_seqs=SEQUENCES, draft_tokens=draft_tokens) as engine:
        for budget in range(5):
            asked = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False, thinking_token_budget=budget)
            for prompt, free, found in zip(prompts, answers, engine._run(prompts, [asked] * len(prompts))):
                start = free.index(opens) + 1 if opens in free else len(free)
                kept, wanted = free[:start + budget], free
                if len(kept) < len(free) and closes not in free[start:start + budget + 1]:
                    wanted = [*kept, closes, *greedy(reference, [*prompt, *kept, closes], 7 - len(kept))]
                end = wanted.index(closes, start) + 3 if closes in wanted[start:] else None  # a second thought has a budget of its own
                assert list(found.outputs[0].token_ids)[:end] == wanted[:end]
                cut.append(wanted != free)
    assert any(cut) and not all(cut)


OPENS, CLOSES, THOUGHT, SAID = range(4)


def verified(holder, thoughts, budget, drafted, right, draw):
    """What greedy verification makes of a model that thinks `thoughts` tokens, in vLLM's own order: the bonus token, then the drafts."""
    def wanted(said):
        if CLOSES in said or not said:
            return SAID if said else OPENS
        return THOUGHT if len(said) <= thoughts else CLOSES

    holder.sync_batch(BatchUpdate(1, [], [(0, SamplingParams(thinking_token_budget=budget), [], output := [])], []))
    while len(output) < 12:
        drafts = []
        for _ in range(drafted if output else 0):
            drafts.append(wanted(output + drafts) if draw.random() < right else draw.randrange(4))
        logits = torch.nn.functional.one_hot(torch.tensor([wanted(output + drafts[:at]) for at in range(len(drafts) + 1)]), 4).float()
        holder.update_state([output], [drafts])
        bonus = holder.apply_to_logits(logits[-1:], True, [drafts]).argmax(1).tolist()
        tokens = (holder.apply_to_logits(logits[:-1], False, [drafts]) if drafts else logits[:0]).argmax(1).tolist() + bonus
        accepted = next((at for at, draft in enumerate(drafts) if draft != tokens[at]), len(drafts))
        output += tokens[:accepted + 1]
    return output


@pytest.mark.parametrize("drafted", [0, 1, 2, 3, 7])
def test_no_draft_moves_the_end_of_the_thinking(drafted):
    """However many drafts are right, and wherever the budget and the model's own end of the thinking lie."""
    vllm_cpu.register()
    draw, tags = random.Random(0), SimpleNamespace(reasoning_start_token_ids=[OPENS], reasoning_end_token_ids=[CLOSES])
    for _ in range(300):
        thoughts, budget, right = draw.randrange(7), draw.randrange(9), draw.choice((0.5, 0.8, 1.0))
        holder = ThinkingBudgetStateHolder(tags, 1, drafted, torch.device("cpu"), False)
        found = verified(holder, thoughts, budget, drafted, right, draw)
        thinking = min(thoughts, budget)
        assert found[:thinking + 4] == [OPENS, *[THOUGHT] * thinking, CLOSES, SAID, SAID], (thoughts, budget, right)


@pytest.fixture(scope="module")
def sampled(foreseeing):
    """Sampled answers with drafts: (prompt, completion) each."""
    with Engine(foreseeing, max_model_len=LENGTH, max_num_seqs=SEQUENCES, draft_tokens=3) as engine:
        asked = {"temperature": TEMPERATURE, "max_tokens": 12, "seed": 4, "logprobs": True, "n": 60}
        groups = engine.generate(PROMPTS[:6], **asked)
        assert engine.generate(PROMPTS[:6], **asked) == groups
        _, _, accepted = engine.draft_statistics()
        assert accepted[0] > 100
    return [(prompt, completion) for prompt, group in zip(PROMPTS, groups) for completion in group]


def test_logprobs_of_drafted_samples_are_of_the_distribution_sampled_from(sampled, reference):
    for prompt, completion in sampled[::20]:
        table = reference_logprobs(reference, prompt + completion.token_ids, TEMPERATURE)[-len(completion.token_ids):]
        torch.testing.assert_close(torch.tensor(completion.logprobs), table, atol=1e-4, rtol=0)


def test_samples_with_drafts_follow_the_distribution(sampled, reference):
    """Where in the model's own ranking each token lies, spread over its share (a randomised probability transform): uniform, at
    every token after the first, or the rule by which drafts are accepted is wrong."""
    draw, ranks, likeliest, variance, hits = np.random.default_rng(0), [], 0.0, 0.0, 0
    for prompt, completion in sampled:
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + completion.token_ids])).logits[0, len(prompt):-1] / TEMPERATURE
        probabilities = logits.double().softmax(-1)
        for row, token in zip(probabilities, completion.token_ids[1:]):
            own = row[token]
            ranks.append((row[row > own].sum() + own * draw.random()).item())
            top = row.max().item()
            likeliest, variance, hits = likeliest + top, variance + top * (1 - top), hits + int(own == row.max())
    counts, _ = np.histogram(ranks, bins=20, range=(0, 1))
    assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(hits - likeliest) < 3.3 * np.sqrt(variance)


def test_the_acceptance_rule_itself():
    """40,000 verifications of a likely and of an unlikely draft against eight probabilities: the tokens are the model's."""
    vllm_cpu.register()
    rows, temperature = 40_000, 0.5
    probabilities = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.015, 0.005])
    drafts, ends = torch.tensor([0, 4], dtype=torch.int32).repeat_interleave(rows), torch.arange(1, 2 * rows + 1, dtype=torch.int32)
    metadata = SimpleNamespace(temperature=torch.full((2 * rows,), temperature), all_greedy=False, all_random=True, top_p=None, top_k=None,
                               generators={})
    torch.manual_seed(0)
    logits = (temperature * probabilities.log()).repeat(2 * rows, 1)
    logits = rejection_sampler.apply_sampling_constraints(logits, ends, metadata)
    bonus = torch.zeros(2 * rows, 1, dtype=torch.int32)
    tokens = rejection_sampler.rejection_sample(drafts, [1] * (2 * rows), 1, ends, None, logits, bonus,
                                                metadata)[:, 0].long()
    for half in (tokens[:rows], tokens[rows:]):
        assert stats.chisquare(torch.bincount(half, minlength=8).numpy(), rows * probabilities.double().numpy()).pvalue > 1e-3
