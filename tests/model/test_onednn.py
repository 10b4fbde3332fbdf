"""PyTorch's products by oneDNN: the same as in float64, whatever way the matrices lie, in a process of their own."""

import subprocess
import sys

import pytest
import torch

from stagecraft import native, onednn

CODE = """
import itertools, pathlib, warnings
warnings.simplefilter("error")
import torch
from stagecraft import native, onednn
library = native.library(pathlib.Path(onednn.__file__).parent)
library.replace_products()

def laid(shape, how, generator):
    *batch, rows, columns = shape
    if how == "rows":
        return torch.randn(shape, generator=generator)
    if how == "columns":
        return torch.randn(*batch, columns, rows, generator=generator).transpose(-1, -2)
    if how == "part":
        return torch.randn(*batch, rows, columns + 5, generator=generator)[..., 3:-2]
    if how == "every second":
        return torch.randn(*batch, rows, 2 * columns, generator=generator)[..., ::2]
    return torch.randn(*batch, rows, 1, generator=generator).expand(shape)

generator = torch.Generator().manual_seed(0)
ways = ("rows", "columns", "part", "every second", "expanded")
for batch, (m, k, n) in itertools.product(((), (3,)), ((200, 130, 170), (128, 192, 170), (1, 4000, 700), (3, 5, 7), (64, 0, 32))):
    for one, other in itertools.product(ways, ways):
        a, b = laid((*batch, m, k), one, generator), laid((*batch, k, n), other, generator)
        expected = a.double() @ b.double()
        to = torch.empty(*batch, m, n)
        product = torch.bmm if batch else torch.mm
        for found in (a @ b, product(a, b), product(a, b, out=to), product(a, b, out=torch.empty(*batch, n, m).transpose(-1, -2))):
            torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3, msg=f"{batch} {m} {k} {n} {one} {other}")
a, b = (torch.randn(300, 300, generator=generator).requires_grad_() for _ in range(2))
(a @ b).backward(torch.ones(300, 300))
torch.testing.assert_close(a.grad, b.detach().sum(1).expand(300, 300), rtol=1e-4, atol=1e-3)
for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.complex64):
    c = torch.ones(200, 200, dtype=dtype)
    assert (c @ c == 200).all()
same = torch.randn(200, 200, generator=generator)
assert torch.equal(torch.mm(same, same), torch.mm(same, same))
try:
    torch.mm(torch.ones(300, 200), torch.ones(300, 200))
except RuntimeError as error:
    assert "cannot be multiplied" in str(error)
else:
    raise AssertionError("sizes that do not fit are multiplied")
with torch.profiler.profile() as profiled:
    torch.mm(torch.ones(300, 300), torch.ones(300, 300))
print("oneDNN", *{event.name for event in profiled.events()})
"""


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="needs AVX-512, without which MKL stays")
def test_products_are_those_of_float64():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Overriding" not in done.stderr


@pytest.mark.parametrize("cpu, capability, replaced", [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False),
                                                       ("GenuineIntel", "AVX512", False)])
def test_they_are_replaced_where_mkl_is_slow(cpu, capability, replaced, monkeypatch):
    calls = []

    class Library:
        replace_products = staticmethod(lambda: calls.append(True))

    monkeypatch.setattr(onednn.Path, "read_text", lambda self: f"vendor_id : {cpu}\n")
    monkeypatch.setattr(onednn.torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(native, "library", lambda package: Library)
    assert onednn.replace_products.__wrapped__() is replaced and bool(calls) is replaced
