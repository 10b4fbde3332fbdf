"""One process group, new for every test: a directory's conftest.py imports it."""

import pytest

from stagecraft.engine import parallel


@pytest.fixture(autouse=True)
def process_group():
    parallel.initialize(seed=7)
    yield
    parallel.shutdown()


@pytest.fixture(scope="module", autouse=True)
def one_group():
    """The same for all tests of a module that imports it."""
    parallel.initialize(seed=0)
    yield
    parallel.shutdown()
