"""Memory that a process gives back and takes again: without page faults once it keeps its pages."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from stagecraft.engine.host_memory import keep_pages
import torch
if sys.argv[1] == "keep":
    keep_pages()
def use():
    return [torch.empty(40 << 18).fill_(1.0) for _ in range(3)]  # 40 MiB each: beyond what glibc adapts to
for _ in range(12):  # until the heap is large enough
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_kept_pages_are_not_cleared_again():
    faults = {how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
              for how in ("keep", "default")}
    assert faults["keep"] < 0.05 * faults["default"]
