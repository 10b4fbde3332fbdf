"""Rows of the two phases: every row of the training is one row of one blend, the second from the first step of the decay on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecraft.engine.phases import phase_of, phases, rows_read


@given(st.integers(1, 30), st.data(), st.integers(1, 8))
def test_the_second_blend_is_read_in_the_decay_and_nowhere_else(steps, data, batch):
    decay = data.draw(st.integers(0, steps))
    schedule = phases("phase1", "phase2", steps=steps, decay_steps=decay, global_batch=batch)
    read = []
    for row in range(steps * batch):
        phase = phase_of(row, schedule)
        in_decay = decay > 0 and row // batch >= steps - decay
        assert phase.blend == ("phase2" if in_decay else "phase1")
        assert rows_read(row, schedule) == {p.blend: sum(blend == p.blend for blend, _ in read) for p in schedule}
        read.append((phase.blend, row - phase.first))
    assert len(set(read)) == len(read)
    for blend in ("phase1", "phase2"):
        mine = [place for name, place in read if name == blend]
        assert mine == list(range(len(mine)))
    with pytest.raises(IndexError, match=f"the training had {steps * batch} rows"):
        phase_of(steps * batch, schedule)


def test_one_blend_for_both_is_one_phase_whose_rows_go_on():
    (only,) = phases("long", "long", steps=10, decay_steps=4, global_batch=2)
    assert (only.blend, only.first, only.rows) == ("long", 0, 20)
