"""Figures are outputs that DVC compares: the same figure is the same file, whichever process draws it and whatever it drew before."""

import sys
from subprocess import run

from matplotlib.figure import Figure

from stagecraft.contract.runlog import RunLog


def loss(log):
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2, 3], label="held out")
    axes.axvline(1, linestyle="--")
    axes.legend()
    return log.figure("loss", figure)


def test_two_processes_write_the_same_file_whose_text_is_text(tmp_path):
    (tmp_path / "work").mkdir()
    first = loss(RunLog("pretrain", tmp_path / "here", tmp_path / "work")).read_bytes()
    code = ("import sys; from pathlib import Path; from stagecraft.contract.runlog import RunLog; from tests.contract import test_figures\n"
            "where = Path(sys.argv[1])\nlog = RunLog('rl', where / 'there', where / 'work')\n"
            "test_figures.loss(log)\ntest_figures.loss(log)")
    run([sys.executable, "-c", code, tmp_path], check=True)
    assert (tmp_path / "there" / "loss.svg").read_bytes() == first and b"held out</text>" in first
