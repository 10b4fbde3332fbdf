"""One process group for the tests of the model."""

from tests.groups import process_group  # noqa: F401
