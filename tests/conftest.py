"""What every test shares: no diary unless a test asks for one, and one thread, so that tests can run beside other work."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MLFLOW_TRACKING_URI"] = ""
for _name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "STAGECRAFT_EVENTS", "STAGECRAFT_PARAMS", "KFP_ENDPOINT"):
    os.environ.pop(_name, None)
