"""The plugin's kernels against the definitions, computed token by token."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.platforms import current_platform

from stagecraft.inference.vllm_cpu import (
    latent_moe,
    loops,
    mamba_decode,
    mamba_speculative,
    moe,
    norm,
    prefill_conv,
    routing,
    seeded_sampling,
)
from tests.inference.recurrence import (
    CHANNELS,
    SLOTS,
    WIDTH,
    convolution_case,
    recurrence_case,
    reference_convolution,
    reference_recurrence,
)

STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=3).filter(lambda rows: sum(n for n, _ in rows))


@pytest.fixture(params=["compiled", "operators"])
def way(request, monkeypatch):
    """The C++ loops, or what does without them."""
    if request.param == "compiled":
        assert loops.library() is not None
    else:
        monkeypatch.setattr(mamba_speculative, "library", lambda: None)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.booleans())
def test_a_speculative_convolution_goes_on_from_the_accepted_tokens(way, rows, channels_last):
    case = convolution_case(*map(tuple, zip(*rows)))
    expected, stored = reference_convolution(case)
    states = case.states.transpose(1, 2).contiguous().transpose(1, 2) if channels_last else case.states.clone()
    got = mamba_speculative.convolve(case.x, states, case.weight, case.bias, "silu", case.slots, case.starts, case.accepted)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for row, inputs in enumerate(stored):
        if case.lengths[row]:
            torch.testing.assert_close(states[int(case.slots[row, 0]), :, :inputs.shape[1]], inputs)
    untouched = sorted(set(range(SLOTS)) - {int(case.slots[row, 0]) for row in range(len(rows)) if case.lengths[row]})
    torch.testing.assert_close(states[untouched], case.states[untouched])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_a_speculative_recurrence_leaves_the_state_of_every_token(way, rows):
    current_platform.import_kernels()
    from vllm.model_executor.layers.mamba.ops.cpu.mamba_ssm import selective_state_update

    case = recurrence_case(*map(tuple, zip(*rows)))
    expected, states = reference_recurrence(case)
    state, out = case.state.clone(), torch.zeros_like(case.x)
    mamba_speculative.update_states(selective_state_update, state, case.x, case.dt, case.A, case.B, case.C, case.D, case.dt_bias, True,
                                    case.slots, case.starts, case.accepted, out)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state, states, atol=1e-4, rtol=1e-4)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.booleans(), st.sampled_from([1, 2]))
def test_the_mixer_of_decoding_sequences_is_its_parts_one_after_another(monkeypatch, rows, drafts, groups):
    current_platform.import_kernels()
    from vllm.model_executor.layers.mamba.ops.cpu.mamba_ssm import selective_state_update

    heads, size, n = 4, 32, 16
    lengths, accepted = zip(*rows) if drafts else ([1] * len(rows), [1] * len(rows))
    inner, tokens, g = heads * size, sum(lengths), torch.Generator().manual_seed(6)
    channels = inner + 2 * groups * n
    slots = torch.tensor([[3, 4, 5], [6, 7, 8], [9, 10, 11]], dtype=torch.int32)[:len(rows), :3 if drafts else 1]
    starts, accepted = (torch.tensor(values, dtype=torch.int32) for values in ([0, *np.cumsum(lengths)], accepted))
    projected = torch.randn(tokens, inner + channels + heads, generator=g)
    conv_states = torch.randn(SLOTS, WIDTH + 1 if drafts else WIDTH - 1, channels, generator=g)
    states = torch.randn(SLOTS, heads, size, n, generator=g)
    A, D, dt_bias, scale = -torch.rand(heads, generator=g), *(torch.rand(k, generator=g) for k in (heads, heads, inner))
    layer = SimpleNamespace(
        kv_cache=(conv_states.clone(), states.clone()), n_groups=groups, conv_kernel_size=WIDTH, A=A, D=D, dt_bias=dt_bias,
        conv_weights=torch.randn(channels, WIDTH, generator=g), conv1d=SimpleNamespace(bias=torch.randn(channels, generator=g)),
        norm=SimpleNamespace(weight=scale, group_size=inner // groups, variance_epsilon=1e-5))
    metadata = SimpleNamespace(state_indices_tensor_d=slots, num_decodes=len(rows), query_start_loc_d=starts if drafts else None,
                               num_accepted_tokens=accepted if drafts else None)
    got = mamba_decode.mix(layer, projected, metadata)

    monkeypatch.setattr(mamba_speculative, "library", lambda: None)
    gate, x, dt = projected.split([inner, channels, heads], 1)
    x = mamba_speculative.convolve(x, conv_states.transpose(1, 2), layer.conv_weights, layer.conv1d.bias, "silu", slots, starts, accepted)
    x, B, C = x.split([inner, groups * n, groups * n], 1)
    y = torch.empty(tokens, heads, size)
    mamba_speculative.update_states(selective_state_update, states, x.unflatten(1, (heads, size)), dt[..., None].expand(-1, -1, size),
                                    A[:, None, None].expand(-1, size, n), B.unflatten(1, (groups, n)), C.unflatten(1, (groups, n)),
                                    D[:, None].expand(-1, size), dt_bias[:, None].expand(-1, size), True, slots, starts, accepted, y)
    y = (y.flatten(1) * F.silu(gate)).unflatten(1, (groups, -1))
    expected = (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).flatten(1) * scale
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    for slot, length in zip(slots[:, 0].tolist(), lengths):
        stored = WIDTH - 2 + length if length else 0  # the operators store the last token of a short sequence again
        torch.testing.assert_close(layer.kv_cache[0][slot, :stored], conv_states[slot, :stored])
    torch.testing.assert_close(layer.kv_cache[1], states, atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=5).filter(lambda rows: sum(n for n, _ in rows)))
def test_the_prefill_convolution_equals_upstreams(rows):
    from vllm.model_executor.layers.mamba.ops.cpu.causal_conv1d import causal_conv1d_fn_cpu as upstream

    g = torch.Generator().manual_seed(2)
    lengths = torch.tensor([length for length, _ in rows])
    x, states = torch.randn(CHANNELS, int(lengths.sum()), generator=g), torch.randn(SLOTS, CHANNELS, WIDTH - 1, generator=g)
    weight, bias = torch.randn(CHANNELS, WIDTH, generator=g), torch.randn(CHANNELS, generator=g)
    arguments = {"query_start_loc": F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32), "activation": "silu",
                 "cache_indices": torch.tensor([7, 2, 9, 4, 5], dtype=torch.int32)[:len(rows)],
                 "has_initial_state": torch.tensor([known for _, known in rows])}
    theirs, ours = states.clone(), states.clone()
    expected = upstream(x, weight, bias, theirs, **arguments)
    torch.testing.assert_close(prefill_conv.convolve(x, weight, bias, ours, **arguments), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_experts_equal_their_formula(tokens):
    g = torch.Generator().manual_seed(3)
    x, up, down = torch.randn(tokens, 16, generator=g), torch.randn(8, 24, 16, generator=g), torch.randn(8, 16, 24, generator=g)
    chosen, share = torch.rand(tokens, 8, generator=g).argsort(1)[:, :2].to(torch.int32), torch.rand(tokens, 2, generator=g)
    experts = moe.SquaredReluExperts.__new__(moe.SquaredReluExperts)
    out = torch.full_like(x, torch.nan)
    experts.apply(out, x, up, down, share, chosen, None, 8, None, None, None, None, None, None, False)
    for token in range(tokens):
        expected = sum(s * (down[e] @ (up[e] @ x[token]).relu().square()) for s, e in zip(share[token], chosen[token].tolist()))
        torch.testing.assert_close(out[token], expected, atol=1e-3, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 99))
def test_routed_experts_equal_their_formula(tokens, experts, chosen, d, f, renormalize, seed):
    """In float64, with as many chosen by all tokens as there happen to be, and sizes that are no multiple of anything."""
    g = torch.Generator().manual_seed(seed)
    chosen = min(chosen, experts)
    logits, bias, x = (torch.randn(shape, generator=g) for shape in ((tokens, experts), (experts,), (tokens, d)))
    up, down = torch.randn(experts, f, d, generator=g), torch.randn(experts, d, f, generator=g)
    got = latent_moe.experts(logits, bias, x, up, down, chosen, renormalize, 2.5)
    weights, ids = routing.choose(logits, chosen, renormalize, 2.5, bias)
    passed = torch.einsum("tef,edf->ted", torch.einsum("td,efd->tef", x.double(), up.double()).relu().square(), down.double())
    expected = (weights.double()[..., None] * passed.gather(1, ids.long()[..., None].expand(-1, -1, d))).sum(1)
    torch.testing.assert_close(got.double(), expected, atol=1e-5 * float(passed.abs().max()), rtol=0)


@pytest.mark.parametrize(("renormalize", "tokens"), [(True, 1), (False, 5)])
def test_experts_of_one_group_are_chosen_as_upstream_chooses_them(renormalize, tokens):
    from vllm.model_executor.layers.fused_moe.router.cpu_router import _grouped_topk as upstream

    g = torch.Generator().manual_seed(4)
    logits, bias = torch.randn(tokens, 32, generator=g), 0.1 * torch.randn(32, generator=g)
    expected = upstream(logits, 4, renormalize, 1, 1, "sigmoid", 2.5, bias)
    for ours, theirs in zip(routing.choose(logits, 4, renormalize, 2.5, bias), expected):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 128), (torch.float32, 40), (torch.bfloat16, 64)])
def test_the_norm_is_its_formula(dtype, width, monkeypatch):
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.layernorm import RMSNorm

    monkeypatch.setattr(RMSNorm, "forward_native", RMSNorm.forward_native)
    norm.mend()
    g = torch.Generator().manual_seed(5)
    x, residual, weight = (torch.randn(shape, generator=g).to(dtype) for shape in ((3, width), (3, width), (width,)))
    with set_current_vllm_config(VllmConfig()):
        layer = RMSNorm(width, eps=1e-5, dtype=dtype)
    layer.weight.data.copy_(weight)
    summed = x + residual
    expected = [(each.float() * torch.rsqrt(each.float().pow(2).mean(-1, keepdim=True) + 1e-5)).to(dtype) * weight for each in (x, summed)]
    torch.testing.assert_close(layer.forward_native(x), expected[0])
    normed, carried = layer.forward_native(x.clone(), residual.clone())
    torch.testing.assert_close(carried, summed)
    torch.testing.assert_close(normed, expected[1])
    wide = torch.randn(3, 2 * width, generator=g).to(dtype)[:, :width]
    torch.testing.assert_close(layer.forward_native(wide), layer.forward_native(wide.contiguous()))


def numbered(seed: int) -> seeded_sampling.NumberedGenerator:
    generator = seeded_sampling.NumberedGenerator()
    generator.manual_seed(seed)
    return generator


def test_a_draw_taken_back_is_drawn_again():
    generator = numbered(5)
    first, second = (seeded_sampling.draw_seeds([generator]).item() for _ in range(2))
    generator.set_offset(generator.get_offset() - 4)
    assert seeded_sampling.draw_seeds([generator]).item() == second != first


def test_draws_are_those_of_splitmix64_and_do_not_depend_on_company():
    """By Python's own integers, from the paper: mix(mix(seed) + (number + 1) * golden ratio), its upper 31 bits."""
    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    several = [numbered(seed) for seed in (0, 1, 2**63 - 1)]
    for number in range(3):
        expected = [mix((mix(seed) + (number + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 33 for seed in (0, 1, 2**63 - 1)]
        assert seeded_sampling.draw_seeds(several).tolist() == expected


def test_draws_are_uniform_over_neighbouring_seeds():
    draws = seeded_sampling.draw_seeds([numbered(seed) for seed in range(4096)]).numpy() / 2**31
    assert abs(draws.mean() - 0.5) < 5 / np.sqrt(12 * 4096)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 5 / np.sqrt(4096)
