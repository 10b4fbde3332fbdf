"""Each defect our plugin mends is still there in vLLM. A failure here is good news: upstream has mended it, remove our module."""

import json
import os
import subprocess
import sys

import pytest

DEFECTS = ("moe", "mamba_speculative, convolution", "mamba_speculative, recurrence", "conv_repack", "prefix_caching", "seeded_sampling",
           "speculative_sampling, temperature", "speculative_sampling, no draft", "draft_dtype", "quantised, float32",
           "quantised, NVFP4 kernel", "kv_cache", "kernel_scan, numba", "kernel_scan, flask", "draft_padding", "thinking_budget")


@pytest.fixture(scope="module")
def unmended() -> dict[str, bool | None]:
    done = subprocess.run([sys.executable, "-m", "tests.inference.unmended"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path])})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("defect", DEFECTS)
def test_upstream_still_has_it(unmended, defect):
    if unmended[defect] is None:
        pytest.skip("this processor does not run the code in question")
    assert unmended[defect]


def test_every_defect_is_looked_for(unmended):
    assert set(unmended) == set(DEFECTS)
