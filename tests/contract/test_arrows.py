"""The arrows of the house, and dvc.yaml: held by reading the code."""

import ast
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stagecraft.contract import dvcfile
from stagecraft.contract.stages import PATHS, STAGES

ROOT = Path(__file__).parents[2]

# Package of stagecraft -> the packages it may import beside itself and `contract` (None: any).
MAY: dict[str, set[str] | None] = {
    "contract": set(), "numerics": set(), "data": set(), "planning": set(), "environments": {"data"},
    "model": {"numerics", "megatron_cpu", "native"}, "engine": {"model", "checkpoint", "megatron_cpu"}, "checkpoint": {"model"},
    "inference": {"numerics", "data", "native", "gloo", "onednn"}, "onednn": {"native"},
    "doctor": set(), "cli": None,
}
ORCHESTRATION = {"kfp", "dvc", "mlflow", "kubernetes", "kubeflow"}


def sources(*parts: str) -> list[Path]:
    return sorted((ROOT.joinpath(*parts)).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of every module a file imports, at whatever depth of the code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


PACKAGES = sorted(path.parent.name for path in (ROOT / "stagecraft").glob("*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package):
    assert package in MAY, "say in this test what the new package may import"
    for path in sources("stagecraft", package):
        assert not tops(path) & {"components", "pipelines"}, path
        if MAY[package] is not None:
            ours = {name.split(".")[1] for name in imported(path) if name.startswith("stagecraft.")}
            assert ours <= MAY[package] | {package, "contract"}, path
        if package not in ("contract", "cli"):
            assert not tops(path) & ORCHESTRATION, path


def test_only_the_command_line_calls_the_doctor():
    callers = [path for path in [*sources("stagecraft"), *sources("components"), *sources("pipelines")]
               if any(name.startswith("stagecraft.doctor") for name in imported(path))]
    assert {path.relative_to(ROOT).parts[1] for path in callers} == {"doctor", "cli"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_component_knows_no_other_component_and_no_conductor(stage):
    for path in sources("components", stage):
        names = imported(path)
        others = {name for name in names if name.startswith("components.") and name.split(".")[1] != stage}
        assert not others, path
        assert not tops(path) & {"pipelines"}, path
        if path.name != "component.py":
            assert not tops(path) & ORCHESTRATION, path
            assert not {name for name in names if name.startswith("stagecraft.cli")}, path


def test_files_are_small_and_say_why_they_exist():
    for path in [*sources("stagecraft"), *sources("components"), *sources("pipelines")]:
        text = path.read_text()
        assert text.count("\n") <= 500, path
        if path.name not in ("__init__.py", "__main__.py"):
            assert ast.get_docstring(ast.parse(text)), path


def test_dvc_yaml_is_what_the_code_says():
    written = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
    assert written == dvcfile.render(ROOT), "run: python -m stagecraft.contract.dvcfile"


def test_dvc_yaml_agrees_with_the_table_of_stages():
    """Independent of the code that writes the file."""
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(stages) == list(STAGES)
    for name, stage in STAGES.items():
        entry = stages[name]
        assert entry["cmd"] == f"python -m components.{name}"
        assert {PATHS[key].as_posix() for key in stage.inputs} == {dep for dep in entry["deps"] if dep.startswith("artifacts/")}
        assert [PATHS[key].as_posix() for key in stage.outputs] == [out for out in entry["outs"] if out.startswith("artifacts/")]
        assert entry["metrics"] == [f"metrics/{name}.json"]  # in DVC's cache, or the run cache could not restore them
        assert entry["params"] == [name]


def test_every_package_a_stage_loads_is_a_dependency(tmp_path):
    """What the reading of imports finds covers a real import: curate's, whose imports are light."""
    import subprocess

    code = "import sys, components.curate.stage; print(*{m.split('.')[1] for m in sys.modules if m.startswith('stagecraft.')})"
    loaded = set(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())
    declared = {Path(dep).parts[1].removesuffix(".py") for dep in dvcfile.render(ROOT)["stages"]["curate"]["deps"]
                if dep.startswith("stagecraft/")}
    assert loaded <= declared | {"contract"}


def test_checking_a_profile_loads_no_engine():
    import subprocess

    code = ("import sys; from stagecraft.contract.preflight import check; from stagecraft.contract.stages import STAGES; "
            "check(open('params.yaml').read(), 'params.yaml', list(STAGES), local=True); "
            "print({'torch', 'transformers', 'megatron', 'vllm', 'numba', 'matplotlib', 'mlflow'} & set(sys.modules))")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "set()\n"
