"""Rows of the phases: every row of the training is one row of one blend, whatever lengths of rows the steps alternate between."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecraft.engine.phases import phase_of, phases, read_at, rows_read
from stagecraft.engine.schedule import LongContext


def long_context(steps, alternating):
    return LongContext(steps=steps, alternating_steps=alternating, blend="long", sequence_length=64, short_length=16, global_batch=2,
                       micro_batch=1, lr=1e-3)


@given(st.integers(1, 30), st.integers(0, 12), st.data(), st.integers(1, 8))
def test_every_step_reads_the_next_rows_of_its_phase(steps, further, data, batch):
    decay, alternating = data.draw(st.integers(0, steps)), data.draw(st.integers(0, further))
    schedule = phases("phase1", "phase2", steps=steps, decay_steps=decay, length=16, batch=batch, long=long_context(further, alternating))
    read = []
    for step in range(steps + further):
        assert list(rows_read(step, schedule).values()) == [sum(phase is of for of, _ in read) for phase in schedule]
        phase, at = read_at(step, schedule)
        after = step - (steps + further - alternating)
        expected = ("phase1", 16) if step < steps - decay else ("phase2", 16) if step < steps else \
            ("phase2", 16) if after >= 0 and after % 2 == 0 else ("long", 64)
        assert (phase.blend, phase.length) == expected
        assert phase.batch * phase.length == (batch * 16 if step < steps else 128)
        read += [(phase, row) for row in range(at, at + phase.batch)]
    assert len(set(read)) == len(read) == sum(phase.rows for phase in schedule)
    numbers = [phase.first + row for phase, row in read]
    assert sorted(numbers) == list(range(len(numbers))) and numbers[:steps * batch] == list(range(steps * batch))
    assert all(phase_of(number, schedule) is phase for number, (phase, _) in zip(numbers, read))
    with pytest.raises(IndexError, match=f"the training had {len(read)} rows"):
        phase_of(len(read), schedule)
    with pytest.raises(IndexError):
        read_at(steps + further, schedule)


def test_one_blend_for_both_is_one_phase_whose_rows_go_on():
    (only,) = phases("long", "long", steps=10, decay_steps=4, length=16, batch=2)
    assert (only.blend, only.first, only.rows) == ("long", 0, 20)


@pytest.mark.parametrize("change, message", [
    ({"alternating_steps": 9}, "more than its steps 4"), ({"short_length": 24}, "does not divide")])
def test_an_impossible_continuation_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LongContext(**{"steps": 4, "alternating_steps": 2, "blend": "long", "sequence_length": 64, "short_length": 16, "global_batch": 2,
                       "micro_batch": 1, "lr": 1e-3, **change})
