"""The layers of Transformer Engine in the model, where there is one: formats, names, checkpoints; nothing is multiplied without a GPU.

Transformer Engine needs CUDA's libraries and an environment of its own: `STAGECRAFT_TE_PYTHON` names its Python (docs/dependencies.md).
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from stagecraft.contract.errors import UserError
from stagecraft.model.build import transformer_config
from stagecraft.model.hardware import runs_transformer_engine
from tests.architectures import tiny

TE = os.environ.get("STAGECRAFT_TE_PYTHON", "")


@pytest.mark.skipif(not TE, reason="STAGECRAFT_TE_PYTHON names no Python with Transformer Engine")
def test_its_layers_have_the_recipes_formats_and_our_checkpoints(tmp_path):
    script = Path(__file__).with_name("transformer_engine_model.py")
    ran = subprocess.run([TE, script, tmp_path, "bf16", "fp8", "nvfp4", "nvfp4-everywhere"], capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.splitlines() == ["bf16 bf16", "fp8 bf16 fp8", "nvfp4 bf16 mxfp8 nvfp4", "nvfp4-everywhere nvfp4"]


def test_without_a_gpu_the_layers_are_ours():
    assert not runs_transformer_engine(set(), torch.bfloat16)
    assert transformer_config(tiny(), precision="nvfp4", dtype=torch.bfloat16).transformer_impl == "local"


@pytest.mark.parametrize(("capability", "formats", "serves"), [
    ((9, 0), set(), False), ((9, 0), {"fp8"}, True), ((9, 0), {"nvfp4", "mxfp8"}, False), ((8, 0), {"fp8"}, False),
    ((10, 0), {"nvfp4", "mxfp8"}, True), ((10, 3), {"fp8"}, True)])
def test_a_gpu_has_its_layers_for_the_formats_it_multiplies(monkeypatch, capability, formats, serves):
    monkeypatch.setattr("stagecraft.model.hardware.ON_CPU", False)
    monkeypatch.setattr("stagecraft.model.hardware.HAVE_TE", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert runs_transformer_engine(formats, torch.bfloat16) is serves
    assert runs_transformer_engine(formats, torch.float32) is False


@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
def test_a_width_that_the_hardware_does_not_take_is_one_line(precision):
    with pytest.raises(UserError, match="Mamba-2 is 129 wide, low precision in hardware takes multiples of 16"):
        transformer_config(tiny(mamba_num_heads=1, mamba_head_dim=48, n_groups=1), precision=precision, dtype=torch.bfloat16,
                           transformer_engine=True)
