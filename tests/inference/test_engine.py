"""The engine against transformers; sampling; weights replaced in place; mistakes."""

import copy
import json
import os
import random
import shutil

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import NemotronHForCausalLM

from stagecraft.contract.errors import UserError
from stagecraft.inference.engine import Engine
from stagecraft.inference.vllm_cpu import backbone, latent_moe
from tests.checkpoints import tiny_checkpoint
from tests.inference.conftest import LENGTH, SEQUENCES, draw_prompts, greedy, reference_logprobs
from tests.processes import named

PROMPTS = draw_prompts(20)  # more than fit one batch


def test_greedy_tokens_and_their_logprobs_are_those_of_transformers(engine, transformer):
    for prompt, (completion,) in zip(PROMPTS, engine.generate(PROMPTS, temperature=0, max_tokens=16, logprobs=True)):
        assert completion.token_ids == greedy(transformer, prompt, 16)
        expected = reference_logprobs(transformer, prompt + completion.token_ids)[-16:]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)
        assert not completion.finished


def test_decoding_is_one_call_that_gives_what_upstreams_layers_give(engine, monkeypatch):
    """Prompts go layer by layer, their experts in a call; then without either."""
    decoded, routed, run, experts = [], [], backbone.Run.__call__, latent_moe.experts
    monkeypatch.setattr(backbone.Run, "__call__", lambda self, x, residual: decoded.append(len(x)) or run(self, x, residual))
    monkeypatch.setattr(latent_moe, "experts", lambda logits, *rest: routed.append(len(logits)) or experts(logits, *rest))
    prompts = PROMPTS[:5]
    short = engine.generate(prompts, temperature=0, max_tokens=4, logprobs=True)
    assert decoded == [len(prompts)] * 3 and set(routed) == {sum(map(len, prompts))}
    monkeypatch.setattr(backbone, "gemm", lambda: None)  # as where PyTorch's BLAS is out of reach
    monkeypatch.setattr(latent_moe, "MOST", 0)
    for (ours,), (theirs,) in zip(short, engine.generate(prompts, temperature=0, max_tokens=4, logprobs=True)):
        assert ours.token_ids == theirs.token_ids
        torch.testing.assert_close(torch.tensor(ours.logprobs), torch.tensor(theirs.logprobs), atol=1e-5, rtol=0)
    assert len(decoded) == 3 and len(set(routed)) == 1


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_of_samples_are_of_the_distribution_sampled_from(engine, transformer, temperature):
    groups = engine.generate(PROMPTS[:4], temperature=temperature, max_tokens=12, n=3, seed=5, logprobs=True)
    for prompt, group in zip(PROMPTS, groups):
        assert len({tuple(completion.token_ids) for completion in group}) == 3
        for completion in group:
            expected = reference_logprobs(transformer, prompt + completion.token_ids, temperature)[-12:]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


def test_samples_follow_the_distribution(engine, transformer):
    """One step from one prompt, 2000 draws: chi-squared over the 20 likeliest tokens and the rest."""
    prompt, draws = PROMPTS[3], 2000
    with torch.no_grad():
        probabilities = transformer(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    top = probabilities.topk(20)
    drawn = [group.token_ids[0] for group in engine.generate([prompt], temperature=1.0, max_tokens=1, n=draws, seed=11)[0]]
    counts = np.array([drawn.count(token) for token in top.indices.tolist()])
    observed = np.append(counts, draws - counts.sum())
    expected = draws * np.append(top.values.numpy(), 1 - top.values.sum().item())
    assert ((observed - expected) ** 2 / expected).sum() < 45.3  # 99.9% of chi-squared with 20 degrees of freedom


def test_equal_seeds_give_equal_samples_whatever_the_company(engine):
    once = engine.generate(PROMPTS, temperature=1.0, max_tokens=8, seed=1)
    assert engine.generate(PROMPTS, temperature=1.0, max_tokens=8, seed=1) == once
    assert engine.generate(PROMPTS[:5], temperature=1.0, max_tokens=8, seed=1) == once[:5]
    assert engine.generate(PROMPTS, temperature=1.0, max_tokens=8, seed=2) != once


def test_logprobs_of_sequences_are_those_of_transformers(engine, transformer):
    sequences = [*PROMPTS, [7], random.Random(1).sample(range(5, 2048), LENGTH - 1)]
    for sequence, got in zip(sequences, engine.logprobs(sequences)):
        torch.testing.assert_close(torch.tensor(got), reference_logprobs(transformer, sequence), atol=1e-4, rtol=0)


def test_a_stop_token_ends_an_answer_and_belongs_to_it(engine):
    (free,), = engine.generate(PROMPTS[:1], temperature=0, max_tokens=10)
    stop = free.token_ids[4]
    (stopped,), = engine.generate(PROMPTS[:1], temperature=0, max_tokens=10, stop_token_ids=[stop])
    assert stopped.finished and stopped.token_ids == free.token_ids[:free.token_ids.index(stop) + 1]
    assert engine.generate([], temperature=0, max_tokens=10) == []


def test_weights_pushed_between_two_tokens_are_those_of_the_next(engine, transformer, checkpoint):
    """Another head, before the engine's fourth step: the states and keys so far do not hang on it."""
    weights = load_file(checkpoint / "model.safetensors")
    other, head, steps = copy.deepcopy(transformer), weights["lm_head.weight"].flip(0), []
    other.lm_head.weight.data.copy_(head)

    def between():
        steps.append(len(steps))
        if len(steps) == 4:
            engine.update_weights({**weights, "lm_head.weight": head}.items())

    try:
        for prompt, (completion,) in zip(PROMPTS[:3], engine.generate(PROMPTS[:3], temperature=0, max_tokens=8, between=between)):
            first = greedy(transformer, prompt, 3)
            assert completion.token_ids == first + greedy(other, prompt + first, 5)
    finally:
        engine.update_weights(weights.items())
    assert len(steps) >= 8


def test_updated_weights_are_a_fresh_engine_with_these_weights(checkpoint, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    asked = {"temperature": 1.0, "max_tokens": 12, "seed": 3, "logprobs": True}
    with Engine(other, max_model_len=LENGTH, max_num_seqs=SEQUENCES) as fresh:
        expected = fresh.generate(PROMPTS, **asked)
    with Engine(checkpoint, max_model_len=LENGTH, max_num_seqs=SEQUENCES) as updated:
        before = updated.generate(PROMPTS, **asked)
        for _ in range(2):
            updated.update_weights(load_file(other / "model.safetensors").items())
            assert updated.generate(PROMPTS, **asked) == expected != before
        updated.update_weights(load_file(checkpoint / "model.safetensors").items())
        assert updated.generate(PROMPTS, **asked) == before


@pytest.mark.slow
def test_a_model_that_two_processes_divide_answers_as_transformers_does(checkpoint, transformer, tmp_path):
    """Also with weights handed over later; the processes end with the engine."""
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    models = transformer, NemotronHForCausalLM.from_pretrained(other, dtype=torch.float32).eval()
    with Engine(checkpoint, max_model_len=LENGTH, max_num_seqs=SEQUENCES, tensor=2) as divided:
        for model in models:
            for prompt, (completion,) in zip(PROMPTS, divided.generate(PROMPTS, temperature=0, max_tokens=8, logprobs=True)):
                assert completion.token_ids == greedy(model, prompt, 8)
                expected = reference_logprobs(model, prompt + completion.token_ids)[-8:]
                torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)
            assert len(ranks := named(os.getpid(), "Worker_TP")) == 2
            divided.update_weights(load_file(other / "model.safetensors").items())
    assert not [child for child in ranks if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(("prompts", "changes"), [([[]], {}), ([[5] * LENGTH], {}), ([[5]], {"n": 2})])
def test_what_cannot_be_answered(engine, prompts, changes):
    with pytest.raises(ValueError, match=r"tokens|greedy"):
        engine.generate(prompts, **{"temperature": 0, "max_tokens": 4, **changes})


def edit(checkpoint, directory, **changes):
    shutil.copytree(checkpoint, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    return directory


def test_mistakes_of_the_user_are_one_line(checkpoint, tmp_path):
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[:len(data) // 2])
    unreadable = shutil.copytree(checkpoint, tmp_path / "unreadable")
    (unreadable / "config.json").write_text("{")
    for model, draft_tokens, sentence in [
        (tmp_path / "nothing", 0, "no config.json"), (unreadable, 0, "unreadable config.json"), (broken, 0, "cannot serve"),
        (edit(checkpoint, tmp_path / "head", head_dim=40), 0, "head size 40"),
        (edit(checkpoint, tmp_path / "llama", model_type="llama"), 0, "nemotron_h"),
        (edit(checkpoint, tmp_path / "no_mtp", num_nextn_predict_layers=0), 2, "no MTP block"),
    ]:
        with pytest.raises(UserError, match=sentence) as caught:
            Engine(model, max_model_len=LENGTH, max_num_seqs=SEQUENCES, draft_tokens=draft_tokens)
        assert "\n" not in str(caught.value)
