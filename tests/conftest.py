"""What every test shares: no diary unless a test asks for one, and one thread, so that tests can run beside other work."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MLFLOW_TRACKING_URI"] = ""
for _name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "STAGECRAFT_EVENTS", "STAGECRAFT_PARAMS", "KFP_ENDPOINT"):
    os.environ.pop(_name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a directory run in one process (`pytest -n 2`): they share what is slow to make."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.parent.name))
