"""A prompt whose beginning is in the cache, attention's keys and Mamba's states, goes on as one that is read from its first token."""

import random

import pytest
import vllm
from vllm import SamplingParams

from stagecraft.inference.engine import Engine
from tests.checkpoints import VOCABULARY
from tests.inference.conftest import greedy, reference_logprobs

SHARED, LENGTH, ANSWER = 600, 1024, 12


@pytest.fixture(scope="module")
def caching(checkpoint):
    """Our engine, with the cache that vLLM has by default."""
    plain = vllm.LLM
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm, "LLM", lambda **arguments: plain(**arguments | {"enable_prefix_caching": True}))
        with Engine(checkpoint, max_model_len=LENGTH, max_num_seqs=4) as started:
            yield started._llm


def ask(llm, prompts):
    return llm.generate([{"prompt_token_ids": prompt} for prompt in prompts],
                        SamplingParams(temperature=0, max_tokens=ANSWER, logprobs=0, detokenize=False, ignore_eos=True), use_tqdm=False)


def test_answers_behind_a_cached_beginning_are_those_of_transformers(caching, transformer):
    draw = random.Random(7)
    shared, *ends = ([draw.randrange(5, VOCABULARY) for _ in range(length)] for length in (SHARED, 1, 40, 170))
    (first,) = ask(caching, [shared + ends[0]])
    assert not first.num_cached_tokens
    prompts = [shared + ends[0], shared + ends[1], shared + ends[2], shared[:-200] + ends[1]]
    together = ask(caching, prompts)
    assert all(output.num_cached_tokens > 0 for output in together[:3]), [output.num_cached_tokens for output in together]
    for prompt, output in zip([prompts[0], *prompts], [first, *together]):
        (said,) = output.outputs
        assert list(said.token_ids) == greedy(transformer, prompt, ANSWER)
        expected = reference_logprobs(transformer, [*prompt, *said.token_ids])[-ANSWER:].tolist()
        assert [found[token].logprob for found, token in zip(said.logprobs, said.token_ids)] == pytest.approx(expected, abs=1e-4)
