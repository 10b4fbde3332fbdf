"""A checkpoint that cannot be written on one of the ranks ends on all, at once, with the reason that it had there."""

import json

import pytest

from tests.processes import torchrun

ROOM = "make room and start again"
REASONS = {"metadata": ("rank 0: OSError: [Errno 28] No space left on device", ROOM),
           "format": ("rank 0: OSError: [Errno 5] Input/output error", "mend that and start again"),
           "part": ("rank 1: OSError: [Errno 122] Disk quota exceeded", ROOM),
           "copy": ("rank 1: RuntimeError: no memory", "mend that and start again")}


@pytest.mark.slow
def test_what_fails_on_one_rank_is_one_line_on_all(tmp_path):
    """Amid collectives the other would wait for it for half an hour."""
    torchrun(2, "-m", "tests.engine.saving_ranks", str(tmp_path), timeout=240, STAGECRAFT_NUMERICS="eager")
    for rank in range(2):
        told = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        for failure, (reason, mend) in REASONS.items():
            line = told.pop(f"{failure}, checkpoint")
            assert line.startswith(f"{tmp_path}/checkpoints: checkpoint of step 2 cannot be written (")
            assert line.endswith(f" GB are free there): {reason} - {mend}: it goes on from step-00000001")
            if failure != "copy":  # of weights alone there is none
                assert told.pop(f"{failure}, weights") == f"{tmp_path}/weights: weights cannot be written: {reason} - {mend}"
        assert not told
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
