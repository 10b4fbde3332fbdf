"""One process group for the tests of the engine."""

import pytest

from stagecraft.engine import parallel


@pytest.fixture(autouse=True)
def process_group():
    parallel.initialize(seed=7)
    yield
    parallel.shutdown()
