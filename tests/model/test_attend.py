"""Attention in one C++ call against its definition in float64: values and gradients of stretches of any lengths, strided or not."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecraft.model.attend import attend, in_one_call
from stagecraft.model.attention import FILLED_UP, ScaledDotProductAttention
from stagecraft.model.packing import pack


def definition(query, key, value, scale, stretches):
    """[t, b, heads * d]; every query's softmax over the keys that it sees, written out."""
    each, rows = query.shape[2] // key.shape[2], []
    key, value = (t.repeat_interleave(each, 2) for t in (key, value))
    for first, end, start, until in stretches:
        scores = torch.einsum("qbhd,kbhd->bhqk", query[first:end], key[start:until]) * (query.shape[-1]**-0.5 if scale is None else scale)
        seen = torch.ones(end - first, until - start, dtype=torch.bool).tril(until - start - (end - first))
        rows.append(torch.einsum("bhqk,kbhd->qbhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value[start:until]))
    return torch.cat(rows).flatten(2)


def agree(tensors, scale, stretches, spread=1.0):
    """Scores of size `spread`, of which float32 rounds so much more away."""
    found = []
    for function, dtype in ((attend, torch.float32), (definition, torch.float64)):
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in tensors]
        views = [leaf.transpose(0, 1) for leaf in leaves]  # rows first in memory: tokens are not next to each other
        y = function(*views, scale, stretches)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape))
        found.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=5e-6 * spread * max(1.0, float(other.abs().max())))


@st.composite
def rows(draw):
    """(stretches, tokens of queries, tokens of keys): sequences side by side, of each the last queries or all."""
    stretches, tokens, keys = [], 0, 0
    for length in draw(st.lists(st.integers(1, 150), min_size=1, max_size=4)):
        queries = draw(st.integers(1, length))
        stretches.append((tokens, tokens + queries, keys, keys + length))
        tokens, keys = tokens + queries, keys + length
    return stretches, tokens, keys


@settings(max_examples=60, deadline=None)
@given(rows(), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.sampled_from([1, 5, 16, 32, 40]), st.sampled_from([None, 0.7]),
       st.sampled_from([1.0, 30.0]), st.integers(0, 99))
def test_it_is_its_definition(row, batch, groups, each, size, scale, spread, seed):
    (stretches, tokens, keys), generator = row, torch.Generator().manual_seed(seed)
    query = spread * torch.randn(batch, tokens, groups * each, size, generator=generator)
    key, value = torch.randn(2, batch, keys, groups, size, generator=generator)
    assert in_one_call(query)
    agree((query, key, value), scale, stretches, spread)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lengths", [[60, 90, 1, 64], [3, 90, 1, 64, 2, 1]])
def test_a_packed_row_is_its_sequences_by_either_kernel(dtype, lengths):
    """In one call; for PyTorch's kernel padded, or one after the other where most of it would be padding."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(sum(lengths), heads, 16, generator=generator).to(dtype) for heads in (4, 2, 2))
    layer, row = ScaledDotProductAttention(SimpleNamespace(context_parallel_size=1), 1, None, ""), pack(lengths)
    assert in_one_call(query) is (dtype == torch.float32)
    assert (row.padded.numel() <= FILLED_UP * sum(lengths)) is (lengths[0] == 60)
    expected = definition(*(t.double().unsqueeze(1) for t in (query, key, value)), None, row.stretches).squeeze(1)
    torch.testing.assert_close(layer(query, key, value, packed_seq_params=row).double(), expected, rtol=0, atol=1e-5)
    plain = layer(*(t.unsqueeze(1) for t in (query, key, value))).squeeze(1)
    first = lengths[0]
    torch.testing.assert_close(plain[:first], layer(query, key, value, packed_seq_params=row)[:first])
    assert not torch.allclose(plain[first:], expected[first:].to(dtype), atol=1e-2)


def test_keys_that_several_stretches_see():
    """As where ranks divide a row: the same keys for an early and a late chunk."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, length, 4, 16, generator=generator) for length in (128, 256, 256))
    stretches = [(0, 64, 0, 128), (64, 128, 0, 256)]
    agree((query, key, value), None, stretches)
    by_tokens = [t.double().transpose(0, 1) for t in (query, key, value)]
    torch.testing.assert_close(attend(*by_tokens, None, stretches), definition(*by_tokens, None, stretches))  # PyTorch's kernel


@pytest.mark.parametrize("where", [0, 1, 2])
def test_what_is_no_number_stays_none(where):
    tensors = [torch.ones(70, 1, 2, 8) for _ in range(3)]
    tensors[where][40] = torch.nan
    leaves = [tensor.requires_grad_() for tensor in tensors]
    y = attend(*leaves, None, [(0, 70, 0, 70)])
    assert y[40].isnan().all()
    y.sum().backward()
    assert any(leaf.grad.isnan().any() for leaf in leaves)


def test_a_score_far_above_those_that_are_seen_is_hidden():
    """What a query sees is not rounded to nothing beside it."""
    query, key, value = torch.full((2, 1, 1, 4), 100.0), torch.ones(2, 1, 1, 4), torch.randn(2, 1, 1, 4)
    key[1] = 100
    torch.testing.assert_close(attend(query, key, value, 1.0, [(0, 2, 0, 2)])[0].flatten(), value[0].flatten())
