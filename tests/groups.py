"""One process group, new for every test: a directory's conftest.py imports it."""

import pytest

from stagecraft.engine import parallel


@pytest.fixture(autouse=True)
def process_group():
    parallel.initialize(seed=7)
    yield
    parallel.shutdown()
