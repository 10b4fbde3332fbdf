"""The search: its integer programme against brute force and ModelOpt's own, its accounting against the files, its decision exported."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.quantize import modelopt_cpu
from components.quantize.export import effective_bits
from components.quantize.exported import read_tensors
from components.quantize.frontier import budgets, compose
from components.quantize.modelopt_search import modelopt_choice
from components.quantize.operators import FORMATS, Operator, find_operators, read_header, tie
from components.quantize.programme import Programme
from components.quantize.roofline import seconds
from components.quantize.search import pose
from stagecraft.contract.errors import UserError
from stagecraft.planning.hardware import gpu as machine
from tests.quantize.conftest import PARAMS, SEARCH, made

BITS = (4.5, 8.0, 16.0)


@st.composite
def programmes(draw, most: int = 7):
    """Layers of attention and experts with sizes and sensitivities over many orders of magnitude."""
    names = []
    for layer in range(draw(st.integers(1, 2))):
        mixer = f"backbone.layers.{layer}.mixer"
        pool = [f"{mixer}.{part}_proj" for part in "qkvo"] if draw(st.booleans()) else [
            *(f"{mixer}.experts.{index}.{part}_proj" for index in range(2) for part in ("up", "down")), f"{mixer}.shared_experts.up_proj"]
        names += draw(st.lists(st.sampled_from(pool), min_size=1, unique=True))
    names = names[:most]
    sizes = np.array(draw(st.lists(st.integers(1, 10**6), min_size=len(names), max_size=len(names))), float)
    scale = 10.0 ** draw(st.integers(-12, 3))
    exponents = draw(st.lists(st.floats(-6, 0), min_size=len(names), max_size=len(names)))
    ratio = draw(st.floats(0.001, 1))
    sensitivities = np.array([[10.0**e, 10.0**e * ratio, 0.0] for e in exponents]) * scale
    return Programme(names, FORMATS, sensitivities, sizes[:, None] * np.array(BITS) / sizes.sum(), [tie(name) for name in names],
                     draw(st.sampled_from([0.0, 1.5])))


def brute_force(programme: Programme, budget: float) -> float:
    """The least sensitivity of all choices that keep ties and budget."""
    best = np.inf
    groups = programme.groups()
    for formats in itertools.product(programme.formats, repeat=len(groups)):
        choice = {programme.names[member]: fmt for fmt, group in zip(formats, groups) for member in group}
        sensitivity, cost = programme.totals(choice)
        if cost <= budget * (1 + 1e-9):
            best = min(best, sensitivity)
    return best


@settings(max_examples=60, deadline=None)
@given(programme=programmes(), share=st.floats(0, 1))
def test_the_optimum_is_brute_forces_and_keeps_ties_and_budget(programme, share):
    budget = programme.cheapest() + share * (16.0 + programme.constant - programme.cheapest())
    choice = programme.solve(budget)
    sensitivity, cost = programme.totals(choice)
    assert cost <= budget * (1 + 1e-9)
    assert all(len({choice[programme.names[member]] for member in group}) == 1 for group in programme.groups())
    assert sensitivity == pytest.approx(brute_force(programme, budget), rel=1e-6, abs=1e-300)


@settings(max_examples=8, deadline=None)  # ModelOpt starts a process for each
@given(seed=st.integers(0, 10**6), layers=st.integers(1, 12), share=st.floats(0, 1))
def test_never_worse_than_modelopts_own_answer(seed, layers, share):
    programme = random_programme(seed, layers)
    budget = programme.cheapest() + share * (12.0 - programme.cheapest())
    ours = programme.totals(programme.solve(budget))[0]
    theirs = modelopt_choice(programme, budget)
    if theirs is not None and programme.totals(theirs)[1] <= budget * (1 + 1e-9):
        assert ours <= programme.totals(theirs)[0] * (1 + 1e-9)


def random_programme(seed: int, layers: int, scale: float = 1e-4) -> Programme:
    """Attention and experts in turn, with the spread of sensitivities that real models show."""
    rng = np.random.default_rng(seed)
    names = [f"backbone.layers.{layer}.mixer.{part}" for layer in range(layers)
             for part in (("q_proj", "k_proj", "v_proj", "o_proj") if layer % 2 else ("experts", "shared_experts.up_proj"))]
    sizes = 10 ** rng.uniform(3, 6, len(names))
    sensitive = 10 ** rng.uniform(-3, 0, len(names)) * scale
    return Programme(names, FORMATS, np.stack([sensitive, sensitive * rng.uniform(0.05, 0.2, len(names)), 0 * sensitive], 1),
                     sizes[:, None] * np.array(BITS) / sizes.sum(), [tie(name) for name in names])


def test_ties_are_those_that_vllm_fuses():
    mixer = "backbone.layers.3.mixer"
    assert len({tie(f"{mixer}.{part}_proj") for part in "qkv"}) == 1
    experts = {tie(f"{mixer}.experts.{index}.{part}_proj") for index in (0, 31) for part in ("up", "down")}
    assert experts == {tie(f"{mixer}.experts")}
    alone = [f"{mixer}.{part}" for part in ("o_proj", "in_proj", "fc1_latent_proj", "shared_experts.up_proj", "shared_experts.down_proj")]
    assert [tie(name) for name in alone] == alone
    assert tie("backbone.layers.5.mixer.q_proj") != tie(f"{mixer}.q_proj")


def test_an_infeasible_budget_names_the_least_feasible():
    programme = random_programme(0, 4)
    with pytest.raises(UserError, match=r"search\.effective_bits: a budget of 4\.2 where no choice is below 4\.5000 - raise it"):
        programme.solve(4.2)
    assert set(programme.solve(4.5).values()) == {"nvfp4"}


def test_formats_take_the_bits_that_they_take():
    experts = Operator("backbone.layers.1.mixer.experts", 1, "experts", ((64, 128), (128, 64)), 16)
    assert experts.bits("nvfp4") == 2 * (8192 * 4 + 512 * 8 + 64)
    assert experts.bits("fp8") == 2 * (8192 * 8 + 64)
    assert experts.bits("bf16") == 2 * 8192 * 16


def test_nothing_else_is_searched(quantised):
    header = read_header(quantised.source)
    families = {operator.family for operator in find_operators(header)}
    assert families == {"in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "fc1_latent_proj", "fc2_latent_proj", "experts",
                        "shared_experts.up_proj", "shared_experts.down_proj"}
    searched = sum(operator.numel for operator in find_operators(header))
    rest = [name for name in header if name.startswith("mtp.") or any(part in name for part in (
        "embeddings", "lm_head", "norm", ".gate.", "conv1d", "A_log", ".D", "dt_bias"))]
    assert searched + sum(int(np.prod(header[name][1])) for name in rest) == sum(int(np.prod(shape)) for _, shape in header.values())


def test_the_budget_is_met_on_disk_and_the_accounting_is_the_files(quantised):
    problem, choice = quantised.search
    bits, _ = effective_bits(quantised.path("nvfp4"), quantised.source, set(choice))
    assert bits <= SEARCH.effective_bits
    assert bits == problem.effective_bits(choice) == quantised.metrics["nvfp4_effective_bits"]
    assert SEARCH.effective_bits - bits < 0.1  # and nearly all of it is used
    assert quantised.metrics["search_sensitivity"] == problem.programme.totals(choice)[0]
    assert sum(quantised.metrics[f"search_operators_{fmt}"] for fmt in FORMATS) == len(choice)


def test_excluded_operators_count_as_params_say(quantised):
    """With everything counted, the choice's bits are those of the whole checkpoint."""
    problem, choice = quantised.search
    counted = pose(read_header(quantised.source), quantised.config, problem.scores, replace(SEARCH, excluded="count"))
    assert counted.effective_bits(choice) == effective_bits(quantised.path("nvfp4"), quantised.source)[1]
    with pytest.raises(UserError, match=r"where no choice is below 16\."):
        counted.programme.solve(4.75)


def test_the_decision_is_written_down(quantised):
    problem, choice = quantised.search
    with open(quantised.root / "plots" / "decision.csv") as stream:
        table = list(csv.DictReader(stream))
    assert {row["operator"]: row["format"] for row in table} == choice
    assert sum(int(row["parameters"]) * float(row["bits"]) for row in table) == pytest.approx(
        quantised.metrics["nvfp4_effective_bits"] * sum(operator.numel for operator in problem.operators))
    assert all(float(row["sensitivity_nvfp4"]) >= float(row["sensitivity_fp8"]) >= float(row["sensitivity_bf16"]) == 0 for row in table)
    assert (quantised.root / "plots" / "decision.svg").stat().st_size > 1000


def test_the_export_of_a_choice_is_put_together_from_uniform_exports(quantised, tmp_path):
    """So the frontier, which puts checkpoints together, measures what an export would be."""
    problem, choice = quantised.search
    exports = {"bf16": read_tensors(quantised.source)}
    for fmt in ("nvfp4", "fp8"):
        exports[fmt] = read_tensors(made(quantised.root / "corpus", quantised.source, tmp_path / fmt, problem.everywhere(fmt)))
    together, exported = compose(choice, exports), read_tensors(quantised.path("nvfp4"))
    assert together.keys() == exported.keys()
    assert len({*choice.values()}) > 1
    for name, tensor in exported.items():
        assert tensor.dtype == together[name].dtype and torch.equal(tensor.float(), together[name].float()), name


def test_the_frontier_has_its_budgets(quantised):
    problem, _ = quantised.search
    wanted = budgets(problem, 9)
    assert len(wanted) == 9 and wanted == sorted(wanted)
    sensitivities = [problem.programme.totals(problem.programme.solve(budget))[0] for budget in wanted]
    assert sensitivities == sorted(sensitivities, reverse=True)
    assert set(problem.programme.solve(wanted[0]).values()) == {"nvfp4"}


@pytest.mark.parametrize("tokens", [1, 10**6])
def test_the_budgets_of_a_search_in_time_are_times(quantised, tokens):
    """With many tokens on a GPU without FP4 nothing is faster than FP8 everywhere: budgets in bits were below what is possible."""
    problem, _ = quantised.search
    timed = pose(read_header(quantised.source), quantised.config, problem.scores,
                 replace(SEARCH, cost="time", excluded="count", gpu="h100", tokens=tokens))
    wanted = budgets(timed, 5)
    assert wanted[-2] == pytest.approx(timed.programme.totals(timed.everywhere("fp8"))[1])
    assert all(timed.programme.totals(timed.programme.solve(budget))[1] <= budget * (1 + 1e-9) for budget in wanted)


def test_time_is_the_rooflines(quantised):
    """Few tokens: bytes over bandwidth, so NVFP4 is fastest. Many on a GPU without FP4: its products run in BF16, so FP8 is."""
    problem, _ = quantised.search
    projection = next(operator for operator in problem.operators if operator.family == "in_proj")
    experts = next(operator for operator in problem.operators if operator.family == "experts")
    h100 = machine("h100")
    assert seconds(projection, "fp8", "h100", 1, quantised.config) == pytest.approx(projection.bits("fp8") / 8 / h100.bandwidth)
    assert seconds(projection, "nvfp4", "h100", 10**6, quantised.config) == pytest.approx(2e6 * projection.numel / h100.peak["bfloat16"])
    assert seconds(experts, "fp8", "h100", 1, quantised.config) == pytest.approx(experts.bits("fp8") / 8 * 2 / 32 / h100.bandwidth)
    header = read_header(quantised.source)

    def fastest(gpu: str, tokens: int) -> set[str]:
        timed = pose(header, quantised.config, problem.scores, replace(SEARCH, cost="time", gpu=gpu, tokens=tokens))
        assert timed.programme.totals(timed.everywhere("bf16"))[1] >= 16 - 1e-9  # float32 as stored is no faster than BF16
        return set(timed.programme.solve(timed.programme.cheapest() * (1 + 1e-9)).values())

    assert fastest("h100", 1) == fastest("b200", 1) == {"nvfp4"}
    assert fastest("h100", 10**6) == {"fp8"}


def test_a_killed_run_resumes_where_it_was(quantised, tmp_path):
    """Scores and finished checkpoints in `work` are taken, not made again."""
    import shutil

    from tests.quantize.conftest import run

    for name in ("corpus", "aligned"):
        shutil.copytree(quantised.root / name, tmp_path / name)
    scores = {operator.name: {"nvfp4": 1.0, "fp8": 1e-9, "bf16": 0.0} for operator in quantised.search[0].operators}
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "scores.json").write_text(json.dumps(scores))
    shutil.copytree(quantised.path("fp8"), tmp_path / "work" / "fp8")
    (tmp_path / "work" / ".nvfp4.tmp").mkdir()
    metrics = run(tmp_path, replace(PARAMS, search=replace(SEARCH, effective_bits=8.01)))
    assert metrics["search_operators_fp8"] == len(scores)
    assert metrics["search_sensitivity"] == pytest.approx(1e-9 * len(scores))
    assert metrics["fp8_kl"] == quantised.metrics["fp8_kl"]
    assert not list((tmp_path / "work").glob(".*.tmp"))


def test_modelopts_scores_are_second_order_and_ours(quantised):
    """On one linear operator the score is sum((gradient at its output x what rounding changes there)^2) / 2 per token."""
    from transformers import NemotronHForCausalLM

    from components.quantize.modelopt_search import sensitivities

    modelopt_cpu.load()
    batch = quantised.heldout[:2]
    model = NemotronHForCausalLM.from_pretrained(quantised.source, dtype=torch.float32).eval()
    layer, kept = model.model.layers[3].mixer.out_proj, {}
    layer.register_forward_hook(lambda _, inputs, output: (kept.update(x=inputs[0].detach(), y=output), output.retain_grad())[0])
    logits = model(batch, use_cache=False).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").backward()

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        scale = tensor.abs().max() / 448
        return (tensor / scale).to(torch.float8_e4m3fn).float() * scale

    change = torch.nn.functional.linear(rounded(kept["x"]), rounded(layer.weight.detach())) - kept["y"].detach()
    expected = float((kept["y"].grad * change).square().sum() / 2 / batch[:, 1:].numel())
    fresh = NemotronHForCausalLM.from_pretrained(quantised.source, dtype=torch.float32).eval()
    with modelopt_cpu.quiet(quantised.root / "scores.log"):
        scores = sensitivities(fresh, ["fp8", "bf16"], "max", [batch], lambda: None)
    assert scores.keys() == {operator.name for operator in quantised.search[0].operators}
    assert scores["backbone.layers.3.mixer.out_proj"] == pytest.approx({"fp8": expected, "bf16": 0.0}, rel=1e-3)
