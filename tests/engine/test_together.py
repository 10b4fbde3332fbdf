"""Work of all ranks that fails on one: what the machine refused there is the one line that it is anywhere."""

import errno
import os

import pytest

from stagecraft.contract.errors import exit_on_user_error
from stagecraft.engine import parallel
from stagecraft.engine.together import together


def test_what_a_rank_was_refused_is_one_line(capsys, tmp_path):
    def fill_up():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))

    parallel.initialize(seed=0)
    with pytest.raises(SystemExit) as end:
        exit_on_user_error(lambda: together(fill_up))
    assert end.value.code == 2
    assert capsys.readouterr().err == (f"error: rank 0: OSError: [Errno 28] No space left on device: '{tmp_path}' - "
                                       "make room and start again\n")
