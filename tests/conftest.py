"""What every test shares: no diary unless a test asks for one, one thread, and two processes that share the directories between them."""

import gc
import os
import signal

from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MLFLOW_TRACKING_URI"] = ""
for _name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "STAGECRAFT_EVENTS", "STAGECRAFT_PARAMS", "KFP_ENDPOINT"):
    os.environ.pop(_name, None)

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them whatever they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("patient", deadline=None)  # a busy machine is no defect
settings.load_profile("patient")


def pytest_collection_finish():
    """What was imported stays: collections, which leaving a process group makes two of, need not go through all of it each time."""
    gc.collect()
    gc.freeze()


class _ByDirectory(LoadScopeScheduling):
    """A directory's tests run in one process, in their order: they share servers and trained models."""

    def _split_scope(self, nodeid):
        return nodeid.partition("::")[0].rpartition("/")[0]


def pytest_xdist_make_scheduler(config, log):
    return _ByDirectory(config, log)
