"""Products of all experts by one kernel are those of one expert after another."""

import pytest
import torch

from stagecraft.model import products

pytestmark = pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0),
                                reason="needs a GPU from Hopper on")


@pytest.mark.parametrize("counts", [[5, 0, 17, 1, 0], [0, 0, 64, 0, 0], [0, 0, 0, 0, 0]])
def test_values_and_gradients(counts, monkeypatch):
    bounds = [0]
    for count in counts:
        bounds.append(bounds[-1] + count)
    found = []
    for grouped in (True, False):
        torch.manual_seed(0)
        if not grouped:
            monkeypatch.setattr(products, "_ends", lambda *args: None)
        x = torch.randn(bounds[-1], 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        w = torch.randn(len(counts), 48, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        assert (products._ends(x, w, bounds) is not None) is grouped
        y = products.GroupedProduct.apply(x, w, bounds, None)
        y.backward(torch.randn_like(y))
        found.append((y, x.grad, w.grad))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-1)
    assert not found[0][2][[count == 0 for count in counts]].any()
