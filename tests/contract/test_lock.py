"""One process at a time, and no child of it in its place."""

import errno
import os
import signal
import time

import pytest

from stagecraft.contract.clone import clone
from stagecraft.contract.errors import UserError
from stagecraft.contract.lock import alone


def test_one_at_a_time(tmp_path):
    path = tmp_path / ".work" / "sft.lock"
    with alone(path, "sft stage", "here"):
        with pytest.raises(UserError, match=rf"^here: another sft stage is at work here \(process {os.getpid()}\)"), \
                alone(path, "sft stage", "here"):
            pass
        assert path.read_text() == f"{os.getpid()}\n"
    with alone(path, "sft stage", "here"):
        pass


def test_a_child_that_is_left_holds_nothing(tmp_path):
    with alone(tmp_path / "lock", "stage", "here"):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.5)
    try:
        with alone(tmp_path / "lock", "stage", "here"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch):
    """As Lustre is, where nobody asked for them."""
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    for hold in (alone(tmp_path / "lock", "stage", "here"), clone(tmp_path, tmp_path / "shared", "sft-1", "")):
        with pytest.raises(UserError, match=r"the file system has no locks \(Function not implemented\) - mount it with them"), hold:
            pass


def test_a_volume_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot write there \(Not a directory\) - make the volume writable for user \d+"), \
            clone(tmp_path, tmp_path / "file", "sft-1", ""):
        pass
