"""Ranks started beside rank 0: one that fails before all have met is not waited for."""

import os
import subprocess
import sys

import pytest

from tests.stages.commands import ROOT

PROGRAM = """
import sys
from pathlib import Path

from stagecraft.engine import launch, parallel

if len(sys.argv) > 1:
    print("error: no such corpus")
    sys.exit(int(sys.argv[1]))
launch._PATIENCE = 1.0
with launch.ranks(2, ["program", CODE], Path("ranks")):
    parallel.join()
"""


@pytest.mark.parametrize("code", [2, 75])
def test_a_rank_that_fails_before_all_have_met_is_not_waited_for(tmp_path, code):
    (tmp_path / "program.py").write_text(PROGRAM.replace("CODE", repr(str(code))))
    ended = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120,
                           env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"})
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.splitlines()[-2:] == [f"rank 1 ended with code {code}; its last lines:", "error: no such corpus"]
