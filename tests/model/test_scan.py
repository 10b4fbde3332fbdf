"""The C++ scan against the products of chunks: values and all gradients, packed rows and sizes that are no multiple of anything."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecraft import native
from stagecraft.model import mamba, scan


@pytest.fixture(autouse=True, scope="module")
def compiled():
    assert scan.library() is not None


def gradients(native, tensors, least=-1, **options):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    library = scan.library
    scan.library = library if native else lambda: None
    try:
        y = mamba.split_conv_scan(*leaves, 8, **options)
    finally:
        scan.library = library
    y.backward(torch.linspace(least, 1, y.numel()).view(y.shape))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.sampled_from([3, 32, 64]), st.sampled_from([1, 2]), st.booleans(),
       st.integers(0, 99))
def test_values_and_gradients_are_those_of_the_products(lengths, size, groups, packed, seed):
    generator = torch.Generator().manual_seed(seed)
    heads, state, total = 4, 5, sum(lengths)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    channels, rows = heads * size + 2 * groups * state, 1 if packed else 2
    tensors = (normal(rows, total, heads * size + channels + heads), normal(channels, 4), normal(channels), normal(heads),
               -torch.rand(heads, generator=generator), normal(heads))
    seq = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None].int() if packed else None
    options = {"seq_idx": seq, "headdim": size, "ngroups": groups}
    *found, _, _ = zip(gradients(True, tensors, **options), gradients(False, tensors, **options))
    # A's and D's are sums over all tokens: of terms of one sign, for one that cancels says nothing of how its terms were rounded.
    tensors = (*(tensor.abs() for tensor in tensors[:4]), tensors[4], tensors[5].abs())
    found += zip(gradients(True, tensors, least=0, **options), gradients(False, tensors, least=0, **options))
    for ours, theirs in found:
        torch.testing.assert_close(ours, theirs, atol=2e-5 * float(theirs.abs().max()) + 1e-6, rtol=0)


@pytest.mark.parametrize("extreme", [-1e30, -1000.0, -89.0, 89.0, 1000.0])
@pytest.mark.parametrize("what", ["gate", "convolution", "step"])
def test_saturated_gates_are_numbers(what, extreme):
    """e^89 is infinite in float32, one divided by it zero."""
    generator = torch.Generator().manual_seed(0)
    heads, size, state = 4, 32, 5
    inner, channels = heads * size, heads * size + 2 * state
    shapes = (1, 9, inner + channels + heads), (channels, 4), (channels,), (heads,)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors += [-torch.rand(heads, generator=generator), torch.randn(heads, generator=generator)]
    if what == "convolution":
        tensors[2][:] = max(extreme, -1000.0)
    else:
        tensors[0][0, 3, slice(inner) if what == "gate" else slice(inner + channels, None)] = extreme
    options = {"headdim": size, "ngroups": 1}
    for ours, theirs in zip(gradients(True, tensors, **options), gradients(False, tensors, **options)):
        assert theirs.isfinite().all()
        torch.testing.assert_close(ours, theirs, atol=2e-5 * float(theirs.abs().max()) + 1e-6, rtol=2e-4)


def test_subnormal_numbers_survive_the_library():
    """Linked with -ffast-math it would set the processor to flush them."""
    assert scan.library() is not None and float(torch.tensor(1e-40) * 0.5) > 0


def test_a_tensor_lives_as_long_as_the_pointer_to_it():
    tensor = torch.ones(3)
    alive, pointer = weakref.ref(tensor), native.at(tensor)
    del tensor
    assert alive() is not None and pointer.value == alive().data_ptr()
    del pointer
    assert alive() is None


def test_without_a_compiler_there_is_a_warning_and_the_products_do(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    try:
        with pytest.warns(UserWarning, match="there is no"):
            assert scan.library() is None
    finally:
        monkeypatch.undo()
        native.library.cache_clear()
