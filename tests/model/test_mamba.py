"""The chunked scan and the convolution against a recurrence in float64, sequence by sequence."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecraft.model.mamba import causal_conv, chunked_scan


def recurrence(x, dt, A, B, C, D):
    """The definition, one token at a time: x [l, h, p], dt [l, h], B and C [l, g, n]."""
    repeat = x.shape[1] // B.shape[1]
    B, C = B.repeat_interleave(repeat, 1), C.repeat_interleave(repeat, 1)
    state = x.new_zeros(*x.shape[1:], B.shape[-1])
    rows = []
    for t in range(len(x)):
        state = state * torch.exp(dt[t] * A)[:, None, None] + (dt[t][:, None] * x[t])[..., None] * B[t][:, None]
        rows.append((state * C[t][:, None]).sum(-1) + D[:, None] * x[t])
    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.sampled_from([4, 8, 32]), st.sampled_from([1, 2]), st.integers(0, 99))
def test_packed_scan_equals_the_recurrence_of_each_sequence(lengths, chunk, groups, seed):
    generator = torch.Generator().manual_seed(seed)
    total, heads, size, state = sum(lengths), 4, 3, 5

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, dt, A, D = normal(total, heads, size), torch.nn.functional.softplus(normal(total, heads)), -normal(heads).exp(), normal(heads)
    B, C = normal(total, groups, state), normal(total, groups, state)
    expected = torch.cat([recurrence(*parts[:2], A, *parts[2:], D) for parts in zip(*(t.split(lengths) for t in (x, dt, B, C)))])
    seq_idx = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    found = chunked_scan(*(t.float()[None] for t in (x, dt)), A.float(), B.float()[None], C.float()[None], D.float(), chunk, seq_idx)
    torch.testing.assert_close(found[0].double(), expected, atol=2e-5, rtol=2e-4)


def test_convolution_starts_anew_at_a_boundary():
    x, weight, bias = torch.randn(1, 11, 6), torch.randn(6, 4), torch.randn(6)
    lengths = [1, 4, 6]
    seq_idx = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    separate = [torch.nn.functional.conv1d(part.transpose(1, 2), weight[:, None], bias, padding=3, groups=6)[..., :part.shape[1]]
                for part in x.split(lengths, 1)]
    torch.testing.assert_close(causal_conv(x, weight, bias, seq_idx), torch.cat(separate, -1).transpose(1, 2))


def test_states_do_not_reach_the_next_sequence_even_without_decay():
    x, dt, B = torch.randn(1, 64, 2, 3), torch.ones(1, 64, 2), torch.ones(1, 64, 1, 4)
    seq_idx = (torch.arange(64) // 20)[None]
    arguments = dt, torch.full((2,), -1e-6), B, B, torch.zeros(2), 8, seq_idx
    changed = x.clone()
    changed[:, :20] += 5
    torch.testing.assert_close(chunked_scan(x, *arguments)[:, 20:], chunked_scan(changed, *arguments)[:, 20:], rtol=0, atol=0)
