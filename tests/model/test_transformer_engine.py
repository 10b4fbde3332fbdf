"""The layers of Transformer Engine in the model, where there is one: formats, names, checkpoints; nothing is multiplied without a GPU.

Transformer Engine needs CUDA's libraries and an environment of its own: `STAGECRAFT_TE_PYTHON` names its Python (docs/dependencies.md).
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from stagecraft.contract.errors import UserError
from stagecraft.engine import parallel
from stagecraft.model.build import build_model, transformer_config
from stagecraft.model.classes import linear_layers, sizes_of
from stagecraft.model.hardware import Hardware, runs_transformer_engine
from stagecraft.model.ladder import resolve
from tests.architectures import tiny

WIDE = {"mamba_num_heads": 16, "hybrid_override_pattern": "M*E" * 2}  # sizes that the hardware takes
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
    ((10, 0), {"nvfp4", "mxfp8"}, True), ((10, 3), {"fp8"}, True), ((12, 0), {"fp8"}, True), ((12, 1), {"mxfp8"}, False),
    ((12, 0), {"nvfp4"}, False), ((11, 0), {"nvfp4"}, False)])
def test_a_gpu_has_its_layers_for_the_formats_it_multiplies(monkeypatch, capability, formats, serves):
    monkeypatch.setattr("stagecraft.model.hardware.ON_CPU", False)
    monkeypatch.setattr("stagecraft.model.hardware.HAVE_TE", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert runs_transformer_engine(formats, torch.bfloat16) is serves
    assert runs_transformer_engine(formats, torch.float32) is False


@pytest.mark.parametrize(("precision", "changes", "tensor", "message"), [
    ("fp8", {"mamba_num_heads": 1, "mamba_head_dim": 48, "n_groups": 1}, 1, r"mixer.in_proj has a size of 129 on a rank, fp8 .* of 16"),
    ("nvfp4", {}, 4, r"mixer.in_proj has a size of 148 on a rank, nvfp4 in hardware takes multiples of 16"),
    ("nvfp4", {"moe_intermediate_size": 40}, 1, r"mlp.experts has a size of 40 on a rank"),
    ("nvfp4", {"hidden_size": 48}, 1, r"mixer.out_proj has a size of 48 on a rank, mxfp8 in hardware takes multiples of 32")])
def test_a_size_that_the_hardware_does_not_take_is_one_line(precision, changes, tensor, message):
    blackwell = Hardware("B200", (10, 0), True)

    def resolved(architecture, tensor):
        return list(resolve(architecture, precision, blackwell, mtp=True, dtype=torch.bfloat16, tensor=tensor))

    resolved(tiny(**WIDE), 1)
    with pytest.raises(UserError, match=message):
        resolved(tiny(**WIDE | changes), tensor)


def test_sizes_are_those_of_the_models_weights():
    parallel.initialize(seed=0)
    try:
        architecture = tiny()
        config = transformer_config(architecture, precision="bf16", mtp_depths=1)
        weights = {name: tuple(parameter.shape) for name, parameter in build_model(architecture, config, 64).named_parameters()}
    finally:
        parallel.shutdown()
    for path in linear_layers(architecture, mtp=True):
        shape = next(shape for name, shape in weights.items() if name.startswith(f"{path}.") and len(shape) > 1)
        assert set(sizes_of(architecture, path, 1)) <= set(shape), path
