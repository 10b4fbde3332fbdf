"""The dry run: the 120B profile's published counts from megatron-core's modules, its ranks, and its recipe read back."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from components.pretrain.dry_run import resolved
from components.pretrain.params import Params
from stagecraft.contract.cluster import read_cluster
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import load, params_path
from tests.stages.commands import ROOT

README = ROOT / "components" / "pretrain" / "README.md"
PERFORMANCE = ROOT / "docs" / "performance.md"


def dry_run(*arguments, profile="params/super-120b.yaml"):
    return subprocess.run([sys.executable, "-m", "components.pretrain", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True,
                          timeout=200, env={**os.environ, "PYTHONPATH": str(ROOT), "STAGECRAFT_PARAMS": profile})


def memory(text):
    """GB of the fullest GPU, and of each phase in its order: (blend, GB)."""
    (needed,) = re.findall(r"^## Memory of the fullest GPU .*: ([\d.]+) GB$", text, re.MULTILINE)
    by_phase = re.findall(r"^in all, (\S+) from step [\d,]+ on: ([\d.]+) GB$", text, re.MULTILINE)
    return float(needed), [(blend, float(each)) for blend, each in by_phase]


@pytest.fixture(scope="module")
def text():
    """As the README asks for it; the 120B profile leaves the number of ranks to torchrun."""
    (profile,) = re.findall(r"`STAGECRAFT_PARAMS=(\S+) python -m components.pretrain --dry-run \[--ranks N\] \[--family GPUS\]`",
                            README.read_text())
    done = dry_run(profile=profile)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_counts_are_the_published_ones(text):
    assert text.splitlines()[0] == "# super-120b.yaml: 120.67B parameters, 12.77B active, MTP +2.94B"


def test_the_profile_of_one_h200_fits_it():
    done = dry_run(profile="params/h200.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[0] == "# h200.yaml: 964.74M parameters, 256.96M active, MTP +85.07M"
    assert "long: from step 19,075, 250 steps of 32 rows, 262.14M tokens in rows of 32,768" in done.stdout
    needed, by_phase = memory(done.stdout)
    assert by_phase == [("phase1", 38.9), ("phase2", 38.9), ("long", 44.7), ("phase2", 44.7)] and needed == 44.7
    (quoted,), (measured,) = (re.findall(words, PERFORMANCE.read_text())
                              for words in (r"and ([\d.]+) GB in the long-context phase", r"\| memory at most \| ([\d.]+) GB \|"))
    assert float(quoted) == needed
    # The measured step is one of phase 1, without fused kernels (docs/performance.md).
    assert by_phase[0][1] < float(measured) < 2 * by_phase[0][1] and 2 * needed < 141
    assert "## Precision of every module on Hopper, " in done.stdout


def test_the_cluster_of_the_profile_has_ranks_for_every_phase(monkeypatch):
    monkeypatch.setenv("STAGECRAFT_PARAMS", str(ROOT / "params" / "super-120b.yaml"))
    asked = read_cluster(Path(params_path()))["pretrain"]
    load(Params, "pretrain").check_ranks(asked.nodes * asked.gpu.count)
    with pytest.raises(UserError, match="64 ranks cannot be divided"):
        load(Params, "pretrain").check_ranks(64)


def test_every_rank_has_its_place(text):
    """Tensor 2 and expert 64 of 128 ranks: neighbours share matrices, those 64 apart experts; all share long rows."""
    both = [line for line in text.splitlines() if line.startswith("rank ")]
    assert len(both) == 256
    ranks, long = both[:128], both[128:]
    assert ranks[0] == "rank 0: tensor 0, pipeline 0, context 0, data 0, experts 0-7" and "\nlayers of pipeline 0: MEMEMEM*" in text
    assert [line.split(": ")[1] for line in text.splitlines() if line.startswith("activations computed")] == [
        "none", "those of the MoE layers"]
    assert "tensor 1," in ranks[67] and ranks[67].endswith("context 0, data 33, experts 24-31")
    assert "tensor 1," in long[67] and long[67].endswith("context 33, data 0, experts 24-31")


def test_phases_modules_and_recipe_are_the_papers(text):
    assert "phase1: from step 0, 794,722 steps of 3,072 rows, 20.00T tokens" in text
    assert "phase2: from step 794,722, 198,682 steps of 3,072 rows, 5.00T tokens" in text
    assert "long: from step 993,404, 2,533 steps of 16 rows, 42.50B tokens in rows of 1,048,576" in text
    assert memory(text) == (115.2, [("phase1", 115.2), ("phase2", 115.2), ("long", 110.3), ("phase2", 110.3)])
    assert "usable on B200: 169.2 GB\nusable on GB200: 174.8 GB\nusable on GB300: " in text
    assert "decoder.layers.0.mixer.out_proj (Mamba output): mxfp8 -> mxfp8 in hardware" in text
    assert "decoder.layers.1.mlp.experts (routed experts): nvfp4 -> nvfp4 in hardware" in text
    assert "decoder.layers.87.mlp.experts (routed experts): bf16 -> bfloat16" in text
    assert "decoder.layers.1.mlp.router (router): fp32 -> float32" in text
    written = YAML(typ="safe").load(text.split("--te-precision-config-file takes it")[1])
    assert {"configs", "matchers"} == written.keys() and "last layers: 74" in written["matchers"]


def test_another_family_is_resolved_or_refused_in_one_line():
    done = dry_run("--family", "hopper")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: precision: nvfp4 (Mamba input) would be emulated on Hopper")
    done = dry_run("--family", "volta")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --family, or nvidia.com/gpu.family in the profile: family of GPUs 'volta' is unknown")
    done = dry_run(profile="params.yaml")
    assert "decoder.layers.0.mixer.in_proj (Mamba input): nvfp4 -> nvfp4 emulated, products in float32" in done.stdout


def test_a_size_that_the_hardware_does_not_take_in_a_later_phase_alone_is_refused():
    params = load(Params, "pretrain", ROOT / "params" / "super-120b.yaml")
    odd = replace(params.architecture, moe_shared_expert_intermediate_size=5344)  # by 2 a multiple of 16, by 4 not
    long = replace(params.long_context, layout=replace(params.long_context.layout, tensor=4, context=16))
    resolved(replace(params, architecture=odd, layout=replace(params.layout, tensor=2)), "blackwell")
    with pytest.raises(UserError, match=r"has a size of 1336 on a rank, nvfp4 in hardware takes multiples of 16"):
        resolved(replace(params, architecture=odd, layout=replace(params.layout, tensor=2), long_context=long), "blackwell")


def test_without_computing_again_the_long_rows_do_not_fit(tmp_path):
    profile = (ROOT / "params" / "super-120b.yaml").read_text()
    assert profile.count("context: 64, expert: 64, recompute: moe}") == 1
    (tmp_path / "kept.yaml").write_text(profile.replace("context: 64, expert: 64, recompute: moe}", "context: 64, expert: 64}"))
    text = dry_run(profile=str(tmp_path / "kept.yaml")).stdout
    assert memory(text)[1][2] == ("long", 179.4)
    assert "usable on B200: 169.2 GB, which is too little\nusable on GB200: 174.8 GB, which is too little\nusable on GB300: 262" in text


def test_ranks_that_a_later_phase_cannot_use_are_one_line():
    done = dry_run("--ranks", "64")
    assert done.returncode == 2 and done.stderr.startswith("error: pretrain.long_context.layout: 64 ranks cannot be divided")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("ranks", ["0", "-4"])
def test_no_ranks_are_not_the_default(ranks):
    done = dry_run("--ranks", ranks)
    assert done.returncode == 2
    assert done.stderr == f"error: --ranks: must be at least 1, not {ranks} - give the total number of ranks, or omit it\n"
