"""The end of a program: one line and a status of its own for a user's mistake, for what the machine refuses, for Ctrl-C."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stagecraft.contract import runner
from stagecraft.contract.errors import UserError, exit_on_user_error


def ended(main, capsys, **how):
    with pytest.raises(SystemExit) as end:
        exit_on_user_error(main, **how)
    return end.value.code, capsys.readouterr().err


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EEXIST, errno.ENOTDIR, errno.EADDRINUSE])
def test_what_the_machine_refuses_is_one_line(number, capsys):
    status, said = ended(raising(OSError(number, os.strerror(number), "some/file")), capsys)
    assert status == 2 and said.startswith(f"error: some/file: {os.strerror(number)} - ") and said.count("\n") == 1


def test_a_defect_keeps_its_traceback(capsys):
    for defect in (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), OSError("without a number"), KeyError("x")):
        with pytest.raises(type(defect)):
            exit_on_user_error(raising(defect))


def test_an_interruption_is_one_line(capsys):
    assert ended(raising(KeyboardInterrupt()), capsys) == (130, "interrupted\n")
    assert ended(raising(KeyboardInterrupt()), capsys, interrupted="interrupted; go on") == (130, "interrupted; go on\n")


def test_a_mistake_and_a_success(capsys):
    assert ended(raising(UserError("wrong", where="here", mend="mend it")), capsys) == (2, "error: here: wrong - mend it\n")
    assert ended(lambda: None, capsys) == (None, "")


def test_a_reader_that_goes_away_hears_no_more():
    program = "from stagecraft.contract.errors import exit_on_user_error as run; run(lambda: print(*range(99999), sep='\\n'))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 141 and process.stderr.read() == ""


def test_a_pipe_of_another_is_a_defect(capsys):
    with pytest.raises(BrokenPipeError):
        exit_on_user_error(raising(BrokenPipeError(errno.EPIPE, "Broken pipe")))


def test_an_interrupted_stage_says_that_it_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(runner, "run_stage", lambda name: raising(KeyboardInterrupt())())
    with pytest.raises(SystemExit) as end:
        runner.cli("sft", [])
    assert end.value.code == 130 and capsys.readouterr().err == "interrupted; the same command goes on from the last checkpoint\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="to root no directory is closed")
def test_a_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    program = "from pathlib import Path; from stagecraft.contract.errors import exit_on_user_error as run; run(Path('closed/new').mkdir)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert (done.returncode, done.stderr) == (2, "error: closed/new: Permission denied - grant access, or work in another directory\n")
