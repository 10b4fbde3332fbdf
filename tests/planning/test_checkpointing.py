"""Young and Daly against the minimum of the expected time, and that against failures thrown at random."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from stagecraft.planning.checkpointing import checkpointing, daly_interval, wall_time, young_interval


@given(st.floats(1, 600), st.floats(0.3, 1000))
def test_daly_is_the_minimum_of_the_expected_time(save, ratio):
    mtbf = save * (1 + ratio) * 2
    best = minimize_scalar(lambda interval: wall_time(1.0, interval, save, 0.0, mtbf), bounds=(save * 1e-3, 20 * mtbf), method="bounded",
                           options={"xatol": save * 1e-6})
    daly = wall_time(1.0, daly_interval(save, mtbf), save, 0.0, mtbf)
    assert daly <= best.fun * 1.002
    assert daly <= wall_time(1.0, young_interval(save, mtbf), save, 0.0, mtbf) * (1 + 1e-9)


def test_young_and_daly_agree_when_failures_are_rare():
    assert daly_interval(1.0, 1e7) == pytest.approx(young_interval(1.0, 1e7), rel=1e-3)
    assert daly_interval(100.0, 10.0) == 10.0


def simulate(work, interval, save, restart, mtbf, generator):
    """Seconds until `work` is done: segments that a failure sends back to their start, restarts that can fail too."""
    clock = done = 0.0
    while done < work - 1e-9:
        length = interval + save
        failure = generator.expovariate(1 / mtbf)
        if failure >= length:
            clock, done = clock + length, done + interval
            continue
        clock += failure
        while (failure := generator.expovariate(1 / mtbf)) < restart:
            clock += failure
        clock += restart
    return clock


def test_the_expected_time_is_that_of_simulated_failures():
    generator = random.Random(1)
    interval, save, restart, mtbf = 100.0, 12.0, 30.0, 400.0
    times = [simulate(20 * interval, interval, save, restart, mtbf, generator) for _ in range(4000)]
    mean = sum(times) / len(times)
    spread = math.sqrt(sum((time - mean) ** 2 for time in times) / len(times) / (len(times) - 1))
    assert abs(mean - wall_time(20 * interval, interval, save, restart, mtbf)) < 4 * spread


def test_twice_the_gpus_fail_twice_as_often_and_write_twice_as_fast():
    one, two = (checkpointing(120e9, gpus, 1e8, 1e9, 900) for gpus in (64, 128))
    assert one.bytes == two.bytes == 120e9 * 14
    assert one.seconds == 2 * two.seconds and one.young == 2 * two.young
    assert 0 < two.useful < 1
