"""The plugin's kernels against the definitions, computed token by token."""

import ctypes

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.platforms import current_platform

from stagecraft import native
from stagecraft.inference.vllm_cpu import (
    backbone,
    latent_moe,
    loops,
    mamba_speculative,
    moe,
    norm,
    prefill_conv,
    routing,
    seeded_sampling,
)
from stagecraft.native import at
from stagecraft.numerics import fp8, nvfp4
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

STEEP = st.sampled_from([1.0, 60.0])  # with the latter silu and sigmoid are of numbers whose exponential is infinite in float32


@pytest.fixture(params=["compiled", "operators"])
def way(request, monkeypatch):
    """The C++ loops, or what does without them."""
    if request.param == "compiled":
        assert loops.library() is not None
    else:
        monkeypatch.setattr(mamba_speculative, "library", lambda: None)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.booleans(), STEEP)
def test_a_speculative_convolution_goes_on_from_the_accepted_tokens(way, rows, channels_last, steep):
    case = convolution_case(*map(tuple, zip(*rows)))
    case.x *= steep
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


def passed(layer: backbone.Layer, x: torch.Tensor) -> torch.Tensor:
    """What the layer makes of x [T, H]."""
    residual, y = torch.zeros_like(x), x.clone()
    loops.library().backbone(native.gemm(), ctypes.byref(layer), *map(ctypes.c_int64, (1, *x.shape)), at(residual), at(y))
    torch.testing.assert_close(residual, x)
    return y


def matrix(weight: torch.Tensor) -> backbone.Matrix:
    return backbone.Matrix(weight.data_ptr(), *weight.shape)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.booleans(), st.sampled_from([1, 2]), STEEP)
def test_a_mamba_layer_of_decoding_sequences_is_its_parts_one_after_another(monkeypatch, rows, drafts, groups, steep):
    current_platform.import_kernels()
    from vllm.model_executor.layers.mamba.ops.cpu.mamba_ssm import selective_state_update

    heads, size, n, hidden = 4, 32, 16, 24
    lengths, accepted = zip(*rows) if drafts else ([1] * len(rows), [1] * len(rows))
    inner, tokens, g = heads * size, sum(lengths), torch.Generator().manual_seed(6)
    channels = inner + 2 * groups * n
    slots = torch.tensor([[3, 4, 5], [6, 7, 8], [9, 10, 11]], dtype=torch.int32)[:len(rows), :3 if drafts else 1].contiguous()
    starts, accepted = (torch.tensor(values, dtype=torch.int32) for values in ([0, *np.cumsum(lengths)], accepted))
    x, into, out_of = (torch.randn(shape, generator=g) for shape in ((tokens, hidden), (inner + channels + heads, hidden), (hidden, inner)))
    into, out_of = into / hidden**0.5, out_of / inner**0.5
    into[:inner] *= steep  # the gate
    conv_states = torch.randn(SLOTS, WIDTH + 1 if drafts else WIDTH - 1, channels, generator=g)
    states, weight, bias = (torch.randn(shape, generator=g) for shape in ((SLOTS, heads, size, n), (channels, WIDTH), (channels,)))
    A, D, dt_bias, scale, norm_weight = (torch.rand(k, generator=g) for k in (heads, heads, heads, inner, hidden))
    A.neg_()
    ours, by_width = (conv_states.clone(), states.clone()), weight.t().contiguous()
    sequences = backbone.Sequences(*slots.shape, *(tensor.data_ptr() for tensor in (slots, starts, accepted)))
    mamba = backbone.Mamba(
        matrix(into), matrix(out_of), ctypes.pointer(sequences),
        *(tensor.data_ptr() for tensor in (*ours, by_width, bias, A, D, dt_bias, scale)), heads, size, groups, n, WIDTH, inner // groups,
        *ours[0].transpose(1, 2).stride(), ours[1].stride(0), 1e-5)
    got = passed(backbone.Layer(norm_weight.data_ptr(), 1e-5, mamba=ctypes.pointer(mamba)), x)

    monkeypatch.setattr(mamba_speculative, "library", lambda: None)
    gate, u, dt = (F.rms_norm(x, (hidden,), norm_weight, 1e-5) @ into.T).split([inner, channels, heads], 1)
    u = mamba_speculative.convolve(u, conv_states.transpose(1, 2), weight, bias, "silu", slots, starts, accepted)
    u, B, C = u.split([inner, groups * n, groups * n], 1)
    y = torch.empty(tokens, heads, size)
    mamba_speculative.update_states(selective_state_update, states, u.unflatten(1, (heads, size)), dt[..., None].expand(-1, -1, size),
                                    A[:, None, None].expand(-1, size, n), B.unflatten(1, (groups, n)), C.unflatten(1, (groups, n)),
                                    D[:, None].expand(-1, size), dt_bias[:, None].expand(-1, size), True, slots, starts, accepted, y)
    y = (y.flatten(1) * F.silu(gate)).unflatten(1, (groups, -1))
    expected = (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).flatten(1) * scale @ out_of.T
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    for slot, length in zip(slots[:, 0].tolist(), lengths):
        stored = WIDTH - 2 + length if length else 0  # the operators store the last token of a short sequence again
        torch.testing.assert_close(ours[0][slot, :stored], conv_states[slot, :stored])
    torch.testing.assert_close(ours[1], states, atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 90)), min_size=1, max_size=4), st.sampled_from([1, 2]),
       st.sampled_from([32, 64]))
def test_an_attention_layer_of_decoding_sequences_equals_upstreams_kernels(rows, key_heads, size):
    """Of sequences with so many new tokens after so many that are cached; the caches are the same afterwards."""
    current_platform.import_kernels()
    from vllm import _custom_ops as ops

    block, heads, hidden, g = 32, 4, 40, torch.Generator().manual_seed(7)
    lengths = [new for new, _ in rows]
    ends = torch.tensor([new + old for new, old in rows], dtype=torch.int32)
    starts = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32)
    table = torch.randperm(4 * len(rows), generator=g).to(torch.int32).view(len(rows), 4)
    places = torch.cat([table[b].long().repeat_interleave(block)[old:old + new] * block + torch.arange(old, old + new) % block
                        for b, (new, old) in enumerate(rows)])
    cache = torch.randn(4 * len(rows), key_heads, block, 2 * size, generator=g)
    x, weight = torch.randn(sum(lengths), hidden, generator=g), torch.rand(hidden, generator=g)
    into, out_of = (torch.randn(shape, generator=g) for shape in (((heads + 2 * key_heads) * size, hidden), (hidden, heads * size)))
    into, out_of, ours = into / hidden**0.5, out_of / (heads * size)**0.5, cache.clone()
    batch = backbone.Cached(*table.shape, *(tensor.data_ptr() for tensor in (starts, ends, table, places)))
    attention = backbone.Attention(matrix(into), matrix(out_of), ctypes.pointer(batch), ours.data_ptr(), heads, key_heads, size, block,
                                   ours.stride(0), size**-0.5)
    got = passed(backbone.Layer(weight.data_ptr(), 1e-5, attention=ctypes.pointer(attention)), x)

    qkv = F.rms_norm(x, (hidden,), weight, 1e-5) @ into.T
    q, k, v = (part.unflatten(1, (-1, size)) for part in qkv.split([heads * size, key_heads * size, key_heads * size], 1))
    keys, values = cache.view(-1, key_heads, 2 * block, size).chunk(2, 2)
    scales = {"k_scale": 1.0, "v_scale": 1.0, "kv_cache_dtype": "auto"}
    ops.cpu_attn_reshape_and_cache(k.contiguous(), v.contiguous(), keys, values, places, "vec", **scales)
    plan = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(rows), num_heads=heads, num_kv_heads=key_heads, head_dim=size, seq_lens=ends, dtype=torch.float32,
        query_start_loc=starts, causal=True, sliding_window_size=-1, isa="vec", enable_kv_split=True, dynamic_causal=None,
        kv_cache_dtype="auto")
    y = torch.empty_like(q)
    ops.cpu_attention_with_kv_cache(
        query=q.contiguous(), key_cache=keys, value_cache=values, output=y, query_start_loc=starts, seq_lens=ends, scale=size**-0.5,
        causal=True, alibi_slopes=None, sliding_window=-1, block_table=table, softcap=0.0, scheduler_metadata=plan, s_aux=None,
        dynamic_causal=None, **scales)
    torch.testing.assert_close(got, y.flatten(1) @ out_of.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours, cache, atol=1e-5, rtol=1e-5)


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
@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 99),
       STEEP)
def test_routed_experts_equal_their_formula(tokens, experts, chosen, d, f, renormalize, seed, steep):
    """In float64, with as many chosen by all tokens as there happen to be, and sizes that are no multiple of anything."""
    g = torch.Generator().manual_seed(seed)
    chosen = min(chosen, experts)
    logits, bias, x = (torch.randn(shape, generator=g) for shape in ((tokens, experts), (experts,), (tokens, d)))
    up, down = torch.randn(experts, f, d, generator=g), torch.randn(experts, d, f, generator=g)
    logits *= steep
    if steep > 1:
        logits[:, 0], bias[0] = 1.0, 9.0  # chosen by all: where the chosen sigmoids are all zero there are no shares
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


BROKEN = [0x7F800000, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF]  # infinity, and NaN with all its bits too


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([(1, fp8.round_static), (2, nvfp4.round_static)]), st.integers(1, 6), st.sampled_from([1e-4, 0.03, 1.0, 40.0]),
       st.sampled_from([1e-3, 0.37, 1.0]), st.integers(0, 999))
def test_rounding_has_the_bits_of_its_definition(way, blocks, spread, scale, seed):
    """Heavy tails, zeros, whole blocks of them, halves of the formats' steps and values that are too large or too small."""
    (number, definition), g = way, torch.Generator().manual_seed(seed)
    x = spread * torch.randn(blocks, 16, generator=g).pow(3)
    x[torch.rand(x.shape, generator=g) < 0.1] = 0.0
    ties = torch.rand(x.shape, generator=g) < 0.3
    x[ties] = (scale * torch.randint(-64, 65, x.shape, generator=g) / 2**torch.randint(0, 12, x.shape, generator=g))[ties]
    x[torch.rand(blocks, generator=g) < 0.1] = -0.0
    broken = torch.rand(x.shape, generator=g) < 0.01
    chosen = torch.randint(len(BROKEN), (int(broken.sum()),), generator=g)
    x[broken] = torch.tensor(BROKEN, dtype=torch.int64).to(torch.int32).view(torch.float32)[chosen]
    y = torch.empty_like(x)
    loops.library().round_to(ctypes.c_int64(number), ctypes.c_float(scale), at(x), ctypes.c_int64(x.numel()), at(y))
    expected = definition(x.flatten(), torch.tensor([scale])).view_as(x)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num().view(torch.int32), expected.nan_to_num().view(torch.int32))
