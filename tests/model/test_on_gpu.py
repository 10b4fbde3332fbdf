"""On a GPU the model trains as on a CPU, and with Transformer Engine's layers as with ours: losses of the same steps."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_transformer_engine = pytest.mark.skipif(importlib.util.find_spec("transformer_engine") is None, reason="needs Transformer Engine")


ON_CPU = """import runpy, sys
sys.modules.update(transformer_engine=None, transformer_engine_torch=None, mamba_ssm=None)  # taken wherever they can be imported
runpy.run_module("tests.model.few_steps", run_name="__main__", alter_sys=True)"""


def losses(*arguments, gpu=True):
    """Of a process of its own: what stands for CUDA is settled once in each."""
    program = ["-m", "tests.model.few_steps"] if gpu else ["-c", ON_CPU]
    ran = subprocess.run([sys.executable, *program, *arguments], capture_output=True, text=True,
                         env={**os.environ, "CUDA_VISIBLE_DEVICES": "0" if gpu else ""})
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_in_float32_the_losses_are_those_of_a_cpu():
    there, here = losses("float32", "bf16"), losses("float32", "bf16", gpu=False)
    assert here[-1] < here[0] - 0.1
    assert there == pytest.approx(here, abs=5e-3) and there[0] == pytest.approx(here[0], abs=1e-3)


@needs_transformer_engine
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_transformer_engine_trains_as_our_layers_do(precision):
    theirs, ours = losses("bfloat16", precision, "transformer_engine"), losses("bfloat16", precision)
    assert ours[-1] < ours[0] - 0.1
    assert theirs == pytest.approx(ours, abs=3e-2) and theirs[0] == pytest.approx(ours[0], abs=1e-2)
