"""Exported FP8 and NVFP4 checkpoints in the engine against the formats' definitions (tests/quantize/reference.py)."""

import pytest
import torch

from stagecraft.inference.engine import Engine
from tests.inference.conftest import LENGTH, SEQUENCES, draw_prompts, reference_logprobs
from tests.quantize.conftest import quantised  # noqa: F401 - a fixture
from tests.quantize.reference import reference_model

PROMPTS = [prompt for prompt in draw_prompts(40, seed=3) if len(prompt) > 1]


@pytest.mark.parametrize("name", ["fp8", "nvfp4"])
def test_log_probabilities_are_those_of_the_stored_numbers(quantised, name):  # noqa: F811
    """Sums in another order tip a few roundings over, and a rounding may tip the router: hence nearly all, not all."""
    with Engine(quantised.path(name), max_model_len=LENGTH, max_num_seqs=SEQUENCES) as engine:
        got = engine.logprobs(PROMPTS)
        answers = engine.generate(PROMPTS, temperature=0, max_tokens=4, logprobs=True)
    rounded = reference_model(quantised.path(name), activations=True)
    distance = torch.cat([torch.tensor(values) - reference_logprobs(rounded, prompt) for values, prompt in zip(got, PROMPTS)]).abs()
    assert (distance < 1e-4).float().mean() > 0.9
    decoded = torch.cat([torch.tensor(completion.logprobs) - reference_logprobs(rounded, prompt + completion.token_ids)[-4:]
                         for prompt, (completion,) in zip(PROMPTS, answers)]).abs()
    assert (decoded < 1e-4).float().mean() > 0.9
    unrounded = reference_model(quantised.path(name))
    apart = torch.cat([torch.tensor(values) - reference_logprobs(unrounded, prompt) for values, prompt in zip(got, PROMPTS)]).abs()
    assert apart.mean() > 20 * distance.mean()  # the engine does round what goes into its operators
    # ... and nothing else sets it apart from the dequantised weights: the two references are as far from one another.
    expected = torch.cat([reference_logprobs(rounded, prompt) - reference_logprobs(unrounded, prompt) for prompt in PROMPTS]).abs()
    assert apart.mean() == pytest.approx(float(expected.mean()), rel=0.05)
