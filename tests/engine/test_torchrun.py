"""torchrun's exit code, and what it says, when a rank does not end well. The real torchrun."""

import subprocess
import sys

import pytest

RANK = """
import os, sys, time
if os.environ["RANK"] == "1":
    print("error: params.yaml: no such thing - mend it", file=sys.stderr)
    sys.exit({code})
time.sleep({patience})
"""


@pytest.mark.parametrize(("code", "patience", "expected"), [(0, 0, 0), (2, 60, 2), (7, 60, 1)])
def test_a_users_mistake_is_told_from_a_failure(tmp_path, code, patience, expected):
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(code=code, patience=patience))
    done = subprocess.run([sys.executable, "-m", "stagecraft.engine.torchrun", "--standalone", "--nproc-per-node", "2", str(script)],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == expected, done.stderr
    assert ("rank 1 was the first of this node to fail, with exit code" in done.stderr) == (code != 0)
    assert "error: params.yaml: no such thing - mend it" in done.stderr.splitlines()
