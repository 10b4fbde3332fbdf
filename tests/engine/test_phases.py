"""Rows of the phases: every row of the training is one row of one blend, whatever lengths of rows the steps alternate between."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecraft.engine.layout import Layout
from stagecraft.engine.phase_params import BatchRamp, LongContext
from stagecraft.engine.phases import phase_of, phases, read_at, rows_read

ONE = Layout(tensor=1, pipeline=1, context=1, expert=1)


def long_context(steps, alternating):
    return LongContext(steps=steps, alternating_steps=alternating, blend="long", sequence_length=64, short_length=16, global_batch=2,
                       micro_batch=1, lr=1e-3, layout=ONE)


@st.composite
def ramps(draw, batch, stable):
    """Growth to `batch` rows within `stable` steps, or none."""
    divisors = [size for size in range(1, batch) for start in range(size, batch) if (batch - start) % size == 0]
    if not divisors or not stable or draw(st.booleans()):
        return BatchRamp(steps=0, start=1, increment=1)
    increment = draw(st.sampled_from(divisors))
    times = draw(st.integers(1, (batch - 1) // increment))
    ramp = BatchRamp(steps=draw(st.integers(min(times, stable), stable)), start=batch - times * increment, increment=increment)
    return ramp if times <= stable else BatchRamp(steps=0, start=1, increment=1)


@given(st.integers(1, 30), st.integers(0, 12), st.data(), st.integers(1, 8))
def test_every_step_reads_the_next_rows_of_its_phase(steps, further, data, batch):
    decay, alternating = data.draw(st.integers(0, steps)), data.draw(st.integers(0, further))
    ramp = data.draw(ramps(batch, steps - decay))
    ramp.check(batch, steps - decay)
    schedule = phases("phase1", "phase2", steps=steps, decay_steps=decay, length=16, batch=batch, ramp=ramp,
                      long=long_context(further, alternating))
    sizes = []
    read = []
    for step in range(steps + further):
        assert list(rows_read(step, schedule).values()) == [sum(phase is of for of, _ in read) for phase in schedule]
        phase, at, rows = read_at(step, schedule)
        after = step - (steps + further - alternating)
        expected = ("phase1", 16) if step < steps - decay else ("phase2", 16) if step < steps else \
            ("phase2", 16) if after >= 0 and after % 2 == 0 else ("long", 64)
        assert (phase.blend, phase.length) == expected
        assert rows * phase.length == 128 if step >= steps else rows == batch if step >= ramp.steps else ramp.start <= rows < batch
        read += [(phase, row) for row in range(at, at + rows)]
        sizes.append(rows)
    assert {after - before for before, after in pairwise([*sizes[:ramp.steps], batch])} <= {0, ramp.increment}
    assert not ramp.steps or sizes[0] == ramp.start
    assert len(set(read)) == len(read) == sum(phase.rows for phase in schedule)
    assert [phase.number for phase in schedule] == list(range(len(schedule)))
    numbers = [phase.first + row for phase, row in read]
    assert sorted(numbers) == list(range(len(numbers))) and numbers[:sum(sizes[:steps])] == list(range(sum(sizes[:steps])))
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
                       "micro_batch": 1, "lr": 1e-3, "layout": ONE, **change})


@pytest.mark.parametrize("change, message", [
    ({"start": 8}, "does not reach global_batch 8"), ({"increment": 4}, "does not reach global_batch 8"),
    ({"steps": 2}, "not between its 3 increments"), ({"steps": 21}, "the 20 steps before the decay")])
def test_an_impossible_growth_of_the_batch_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        BatchRamp(**{"steps": 12, "start": 2, "increment": 2, **change}).check(8, 20)


def test_growth_is_in_equal_parts():
    (phase,) = phases("phase1", "phase1", steps=20, decay_steps=5, length=16, batch=8, ramp=BatchRamp(steps=9, start=2, increment=2))
    assert [read_at(step, [phase])[2] for step in range(20)] == [2] * 3 + [4] * 3 + [6] * 3 + [8] * 11
    assert phase.rows == 36 + 11 * 8
