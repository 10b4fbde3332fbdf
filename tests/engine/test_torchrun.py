"""torchrun's exit code, and what it says, when a rank does not end well. The real torchrun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

RANK = """
import os, sys, time
if os.environ["RANK"] == "1":
    print("error: params.yaml: no such thing - mend it", file=sys.stderr)
    sys.exit({code})
time.sleep({patience})
"""

SLEEPER = """
import os, time
open(os.environ["RANK"], "w").write(str(os.getpid()))
try:
    time.sleep(100)
except KeyboardInterrupt:
    pass
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


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_ranks_in_one_line(tmp_path, sent):
    (tmp_path / "rank.py").write_text(SLEEPER)
    command = [sys.executable, "-m", "stagecraft.engine.torchrun", "--standalone", "--nproc-per-node", "2", "rank.py"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": str(Path.cwd())}) as torchrun:
        while not all((tmp_path / rank).exists() and (tmp_path / rank).read_text() for rank in "01"):
            assert torchrun.poll() is None
            time.sleep(0.1)
        torchrun.send_signal(sent)
        said = torchrun.communicate(timeout=60)[1]
    assert torchrun.returncode == 128 + sent and "Traceback" not in said
    assert said.splitlines()[-1] == f"ended by {sent.name}, and its ranks with it"
    assert not any(psutil.pid_exists(int((tmp_path / rank).read_text())) for rank in "01")
