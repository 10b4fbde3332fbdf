"""`make setup`: what is missing is one line, what is stale is rebuilt, what was interrupted is not mistaken for finished.

The real script runs with a stand-in for Python that records what it is asked to install.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STAND_IN = """#!/bin/sh
case "$*" in
  *sys.version_info\\ *) exit {too_old} ;;
  *%d.%d*) echo {version} ;;
  *ensurepip*) exit 0 ;;
  *libnuma*) exit {numa} ;;
  *hashlib*) exec {python} "$@" ;;
  *torch.version.cuda*) echo "{cuda}" ;;
  "-m compileall "*) echo "$@" > compiled.log; exit 1 ;;
  "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; printf '#!/bin/sh\\necho "$@" >> pip.log\\nexit {pip}\\n' > .venv/bin/pip
    chmod +x .venv/bin/pip ;;
  *) exit 9 ;;
esac
"""


@pytest.fixture
def project(tmp_path):
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    for name in ("pyproject.toml", "setup.py", "Makefile"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def setup(project, *, version="3.11", too_old=0, cuda="", pip=0, numa=0, path=None, torch_index=""):
    python = project / "fake-python"
    python.write_text(STAND_IN.format(version=version, too_old=too_old, cuda=cuda, pip=pip, numa=numa, python=sys.executable))
    python.chmod(0o755)
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    command = ["make", "--no-print-directory", "setup", f"PYTHON={python}", f"TORCH_INDEX={torch_index}"]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=60)


def installs(project) -> int:
    log = project / "pip.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_it_builds_once_and_again_only_when_something_changed(project):
    assert setup(project).returncode == 0
    assert installs(project) == 2  # the lock, then the project itself
    assert setup(project).returncode == 0
    assert installs(project) == 2
    os.utime(project / "requirements" / "laptop.lock")  # a date is no change
    assert setup(project).returncode == 0
    assert installs(project) == 2
    (project / "requirements" / "laptop.lock").open("a").write("extra==1.0\n")
    assert setup(project).returncode == 0
    assert installs(project) == 4


def test_what_is_installed_and_how(project):
    setup(project, torch_index="http://example.org/cpu")
    lock, own = (project / "pip.log").read_text().splitlines()
    for option in ("--no-deps", "--no-compile", "--no-binary megatron-core", "--requirement=requirements/laptop.lock",
                   "--requirement=requirements/development.lock", "--extra-index-url http://example.org/cpu"):
        assert option in lock
    for option in ("--no-deps", "--no-build-isolation", "--editable ."):
        assert option in own
    assert (project / "compiled.log").read_text().endswith(" .venv/lib\n")


def test_an_interrupted_build_is_taken_up_again(project):
    assert setup(project, pip=1).returncode != 0
    assert not (project / ".venv" / ".stagecraft-digest").exists()
    shutil.rmtree(project / ".venv")
    assert setup(project).returncode == 0
    assert (project / ".venv" / ".stagecraft-digest").exists()


@pytest.mark.parametrize(("options", "expected"), [
    ({"version": "3.10", "too_old": 1}, "is Python 3.10 - Stagecraft needs 3.11 or later"),
    ({"numa": 1}, "apt install libnuma1"),
    ({"cuda": "13.0"}, "TORCH_INDEX=URL"),
    ({"cuda": "unloadable"}, "TORCH_INDEX=URL"),
])
def test_what_cannot_work_is_one_line(project, options, expected):
    done = setup(project, **options)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert not (project / ".venv" / ".stagecraft-digest").exists()


def test_a_missing_compiler_is_one_line(project, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "sh", "make", "cat", "dirname", "mkdir", "cp", "chmod", "rm", "sed"):
        (tools / name).symlink_to(shutil.which(name))
    done = setup(project, path=str(tools))
    assert done.returncode == 2
    assert "g++: not found" in done.stderr


def test_the_locks_pin_everything_and_name_no_host():
    locks = [(ROOT / "requirements" / name).read_text() for name in ("laptop.lock", "development.lock")]
    lines = [line for text in locks for line in text.splitlines() if line and not line.startswith("#")]
    assert all(line.count("==") == 1 and "/" not in line and " " not in line for line in lines)
    names = [line.split("==")[0].lower().replace("_", "-") for line in lines]
    assert len(names) == len(set(names))


def test_what_packages_read_is_installed_with_them():
    """In a wheel, too, in which nothing is found that pyproject.toml does not name."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    left = []
    for path in (path for package in ("stagecraft", "components", "pipelines") for path in (ROOT / package).rglob("*")):
        if (path.is_dir() or path.suffix in (".py", ".md") or path.name.startswith("Containerfile")
                or "__pycache__" in path.parts):  # compiled there by whoever imports it: Python, numba
            continue
        package = next(folder for folder in path.parents if (folder / "__init__.py").is_file())
        if not any(path.relative_to(package).match(pattern) and pattern.count("/") == len(path.relative_to(package).parts) - 1
                   for pattern in patterns):
            left.append(str(path.relative_to(ROOT)))
    assert left == []
