"""The C++ cross-entropy against PyTorch's: values and gradients, logits of any size, and labels at the ends of the vocabulary."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecraft.model.cross_entropy import cross_entropy
from stagecraft.model.loops import library


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 300), st.sampled_from([0.0, 1.0, 30.0, 1e4]), st.sampled_from([torch.float32, torch.bfloat16]),
       st.integers(0, 99))
def test_values_and_gradients_are_pytorchs(rows, classes, spread, dtype, seed):
    assert library() is not None
    generator = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(rows, classes, generator=generator)).to(dtype)
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[0], labels[-1] = 0, classes - 1
    weights, found = torch.rand(rows, generator=generator), []
    for function in (cross_entropy, lambda x, y: F.cross_entropy(x.double(), y, reduction="none").float()):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf, labels)
        (loss * weights).sum().backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=2e-6, atol=2e-6 * max(1.0, spread))
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5 if dtype is torch.float32 else 1e-2, atol=1e-6)


@pytest.mark.parametrize("label", [-100, -1, 7])
def test_a_label_that_is_no_class_is_refused(label):
    with pytest.raises(IndexError, match="of 7 classes"):
        cross_entropy(torch.randn(3, 7), torch.tensor([0, label, 6]))


def test_labels_may_have_another_integer_type():
    logits, labels = torch.randn(3, 7), torch.tensor([0, 6, 3])
    assert torch.equal(cross_entropy(logits, labels.int()), cross_entropy(logits, labels))


def test_a_logit_that_is_no_number_gives_a_loss_that_is_none():
    logits = torch.zeros(2, 40)
    logits[1, 3] = torch.nan
    loss = cross_entropy(logits, torch.tensor([1, 2]))
    assert loss[0].isfinite() and not loss[1].isfinite()


def test_without_a_gradient_nothing_is_kept_and_twice_there_is_none():
    logits = torch.randn(3, 7)
    assert cross_entropy(logits, torch.arange(3)).grad_fn is None
    loss = cross_entropy(logits.requires_grad_(), torch.arange(3)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken already"):
        loss.backward()
