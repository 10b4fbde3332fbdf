"""Exported FP8 and NVFP4 checkpoints in the engine against the formats' definitions (tests/quantize/reference.py)."""

import pytest
import torch

from components.quantize.operators import FORMATS, Operator, find_operators, read_header, tie
from stagecraft.inference.engine import Engine
from stagecraft.inference.vllm_cpu import backbone
from tests.checkpoints import tiny_checkpoint
from tests.inference.conftest import LENGTH, SEQUENCES, draw_prompts, reference_logprobs
from tests.quantize.conftest import made, quantised  # noqa: F401 - a fixture
from tests.quantize.reference import reference_model, stored_tensors

# As many as it takes for a share: what tips over, of one answer in ten, hangs on the processor.
PROMPTS = [prompt for prompt in draw_prompts(200, seed=3) if len(prompt) > 1]


@pytest.mark.parametrize("name", ["fp8", "nvfp4"])
def test_log_probabilities_are_those_of_the_stored_numbers(quantised, name, monkeypatch):  # noqa: F811
    check(quantised.path(name), PROMPTS, monkeypatch)


def every_format(operators: list[Operator]) -> dict[str, str]:
    """Each family of operators in each format, in the three layers that have it, and neighbours in different formats."""
    families = sorted({tie(operator.name).removeprefix(f"backbone.layers.{operator.layer}.") for operator in operators})
    layers = sorted({operator.layer for operator in operators})
    return {operator.name: FORMATS[(layers.index(operator.layer) // 3 + families.index(
        tie(operator.name).removeprefix(f"backbone.layers.{operator.layer}."))) % 3] for operator in operators}


def nvfp4_everywhere(operators: list[Operator]) -> dict[str, str]:
    return {operator.name: "nvfp4" for operator in operators}


@pytest.mark.parametrize("choose", [every_format, nvfp4_everywhere])
def test_whatever_a_search_may_choose(quantised, tmp_path, choose, monkeypatch):  # noqa: F811
    source = tiny_checkpoint(tmp_path / "source", pattern="M*EM*EM*E")
    operators = find_operators(read_header(source))
    choice = choose(operators)
    if choose is every_format:
        assert {(operator.family, choice[operator.name]) for operator in operators} == {
            (family, fmt) for family in {operator.family for operator in operators} for fmt in FORMATS}
    directory = made(quantised.root / "corpus", source, tmp_path / "made", choice)
    dtypes = {"nvfp4": torch.uint8, "fp8": torch.float8_e4m3fn, "bf16": torch.float32}
    stored = stored_tensors(directory)
    for operator in operators:
        weights = [name for name in stored if name.startswith(f"{operator.name}.") and name.endswith(".weight")]
        assert weights and {stored[name].dtype for name in weights} == {dtypes[choice[operator.name]]}, operator.name
    check(directory, [prompt[:12] for prompt in PROMPTS[:40]], monkeypatch)


def check(checkpoint, prompts, monkeypatch):
    """Sums in another order tip a few roundings over, and a rounding may tip the router: hence nearly all, not all."""
    stacks, call = [], backbone.Stack.__call__
    monkeypatch.setattr(backbone.Stack, "__call__", lambda self, *arguments: stacks.append(self) or call(self, *arguments))
    with Engine(checkpoint, max_model_len=LENGTH, max_num_seqs=SEQUENCES) as engine:
        got = engine.logprobs(prompts)
        answers = engine.generate(prompts, temperature=0, max_tokens=4, logprobs=True)
        assert stacks[-1].last is not None  # all layers in one call, while all sequences decoded
    rounded, unrounded = reference_model(checkpoint, activations=True), reference_model(checkpoint)
    # Of prompt and answer at once: a token's figure does not depend on what comes after it.
    whole = [reference_logprobs(rounded, prompt + completion.token_ids) for prompt, (completion,) in zip(prompts, answers)]
    read = [values[:len(prompt) - 1] for values, prompt in zip(whole, prompts)]
    distance = torch.cat([torch.tensor(values) - expected for values, expected in zip(got, read)]).abs()
    assert (distance < 1e-4).float().mean() > 0.9
    decoded = torch.cat([torch.tensor(completion.logprobs) - values[-4:] for values, (completion,) in zip(whole, answers)]).abs()
    assert (decoded < 1e-4).float().mean() > 0.9
    plain = [reference_logprobs(unrounded, prompt) for prompt in prompts]
    apart = torch.cat([torch.tensor(values) - expected for values, expected in zip(got, plain)]).abs()
    assert (apart < 1e-4).float().mean() < 0.1  # the engine does round what goes into its operators
    # ... and nothing else sets it apart from the dequantised weights: the two references are as far from one another.
    expected = torch.cat([one - other for one, other in zip(read, plain)]).abs()
    assert apart.median() == pytest.approx(float(expected.median()), rel=0.05)
