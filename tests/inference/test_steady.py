"""Steps that go on from the one before: across the edges of blocks, while sequences end and others take their places."""

import random

import pytest
import torch
from safetensors.torch import load_file

from stagecraft.inference.engine import Engine
from stagecraft.inference.vllm_cpu import steady
from tests.checkpoints import VOCABULARY
from tests.inference.conftest import reference_logprobs

LENGTHS, ANSWER = (1, 60, 126, 127, 128, 129, 30, 90), 140  # of prompts; a block has 128 places


@pytest.fixture(scope="module", params=[0, 1, 3])
def engine(foreseeing, request):
    """Fewer places than prompts."""
    with Engine(foreseeing, max_model_len=300, max_num_seqs=5, draft_tokens=request.param) as started:
        yield started


@pytest.fixture(scope="module")
def prompts():
    draw = random.Random(3)
    return [[draw.randrange(5, VOCABULARY) for _ in range(length)] for length in LENGTHS]


def test_answers_are_those_of_steps_made_anew_and_of_transformers(engine, reference, prompts, monkeypatch):
    gone_on, go_on = [], steady.Step.go_on
    monkeypatch.setattr(steady.Step, "go_on", lambda self, runner: gone_on.append(self) or go_on(self, runner))
    ours = [engine.generate(part, temperature=0, max_tokens=count, logprobs=True, stop_token_ids=range(40))
            for part, count in ((prompts, ANSWER), (prompts[:1], 20))]
    assert len(gone_on) > 50 and len({id(step) for step in gone_on}) > 4  # most steps, from several beginnings
    monkeypatch.setattr(steady, "_eligible", lambda runner, tokens: False)
    anew = [engine.generate(part, temperature=0, max_tokens=count, logprobs=True, stop_token_ids=range(40))
            for part, count in ((prompts, ANSWER), (prompts[:1], 20))]
    assert len({len(answer.token_ids) for (answer,) in ours[0]}) > 1
    for prompt, (answer,), (other,) in zip([*prompts, prompts[0]], [*ours[0], *ours[1]], [*anew[0], *anew[1]]):
        assert answer.token_ids == other.token_ids
        expected = reference_logprobs(reference, [*prompt, *answer.token_ids])[-len(answer.token_ids):]
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-4, rtol=0)


def test_samples_are_the_same_too(engine, prompts, monkeypatch):
    ours = engine.generate(prompts, temperature=1.0, max_tokens=40, seed=4, logprobs=True)
    monkeypatch.setattr(steady, "_eligible", lambda runner, tokens: False)
    assert engine.generate(prompts, temperature=1.0, max_tokens=40, seed=4, logprobs=True) == ours


def test_weights_replaced_between_two_steps_are_taken_up(engine, foreseeing, prompts, monkeypatch):
    weights = load_file(foreseeing / "model.safetensors")
    other = {**weights, "backbone.layers.2.mixer.fc2_latent_proj.weight": -weights["backbone.layers.2.mixer.fc2_latent_proj.weight"]}

    def pushed():
        steps = []

        def between():
            steps.append(1)
            if len(steps) == 10:
                engine.update_weights(other.items())

        answers = engine.generate(prompts[1:3], temperature=0, max_tokens=30, between=between)
        engine.update_weights(weights.items())
        return answers

    plain, ours = engine.generate(prompts[1:3], temperature=0, max_tokens=30), pushed()
    monkeypatch.setattr(steady, "_eligible", lambda runner, tokens: False)
    assert pushed() == ours != plain
    assert [answer.token_ids[:9] for (answer,) in ours] == [answer.token_ids[:9] for (answer,) in plain]
