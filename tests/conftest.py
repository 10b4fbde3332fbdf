"""What every test shares: no diary unless a test asks for one, and one thread, so that tests can run beside other work."""

import os

import pytest
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MLFLOW_TRACKING_URI"] = ""
for _name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "STAGECRAFT_EVENTS", "STAGECRAFT_PARAMS", "KFP_ENDPOINT"):
    os.environ.pop(_name, None)


class ByDirectory(LoadScopeScheduling):
    """The tests of a directory run in one process (`pytest -n 2`): they share what is slow to make.

    xdist 3.8.0's `--dist loadgroup` would do, but under pytest 9.2 the group no longer reaches its scheduler.
    """

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.rsplit("/", 1)[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByDirectory:
    return ByDirectory(config, log)
