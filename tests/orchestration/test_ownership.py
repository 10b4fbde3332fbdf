"""`kfp run FILE.py` is ours whoever installed last, and stock KFP keeps every other command.

An environment of its own is laid out: a virtual environment that sees the installed packages, with our .pth file in its own
site-packages and, as bin/kfp, the script that installing KFP writes.
"""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.orchestration.project import REPOSITORY

STOCK = """#!{python}
import re
import sys
from kfp.cli.__main__ import main
if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
    sys.exit(main())
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, with_pip=False, symlinks=True)
    site = root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "packages.pth").write_text(f"{REPOSITORY}\n{sysconfig.get_path('purelib')}\n")
    (site / "stagecraft_startup.pth").write_text((REPOSITORY / "stagecraft_startup.pth").read_text())
    script = root / "bin" / "kfp"
    script.write_text(STOCK.format(python=root / "bin" / "python"))
    script.chmod(0o755)
    return root


def call(environment, *arguments):
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "KFP_"))}
    return subprocess.run([str(environment / "bin" / "kfp"), *arguments], capture_output=True, text=True, env=plain, timeout=120,
                          cwd=environment)


@pytest.mark.parametrize("file", [("pipelines/full.py",), ()])
def test_the_stock_script_runs_our_command(environment, file):
    done = call(environment, "run", *file, "--help")
    assert done.returncode == 0, done.stderr
    for word in ("NAME=VALUE", "--endpoint", "KFP_ENDPOINT", "--profile", "--from", "runs on this machine"):
        assert word in done.stdout


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("dsl", "--help"), ("dsl", "compile", "--help")])
def test_every_other_command_is_stock(environment, arguments):
    ours = call(environment, *arguments)
    pth = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages" / "stagecraft_startup.pth"
    text = pth.read_text()
    pth.unlink()
    try:
        stock = call(environment, *arguments)
    finally:
        pth.write_text(text)
    assert ours.returncode == stock.returncode == 0, ours.stderr
    assert ours.stdout == stock.stdout


def test_without_the_hook_the_stock_script_knows_no_files(environment, tmp_path):
    """The test above can fail: this is what stock KFP says."""
    done = subprocess.run([sys.executable, "-c", "import sys; sys.argv = ['kfp', 'run', 'pipelines/full.py']; "
                           "from kfp.cli.cli import cli; cli(obj={})"], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0


def test_other_programs_are_left_alone(environment):
    code = "import sys; print('stagecraft' in sys.modules, [f.__module__ for f in sys.meta_path if 'Kfp' in getattr(f, '__name__', '')])"
    done = subprocess.run([str(environment / "bin" / "python"), "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False []"


def test_the_installed_environment_has_the_hook():
    site = Path(sysconfig.get_path("purelib"))
    assert (site / "stagecraft_startup.pth").read_text() == (REPOSITORY / "stagecraft_startup.pth").read_text()
    assert "stagecraft.cli.kfp" in (Path(sys.executable).parent / "kfp").read_text()
