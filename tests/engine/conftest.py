"""One process group for the tests of the engine."""

from tests.groups import process_group  # noqa: F401
