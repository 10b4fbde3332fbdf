"""A rank of the trainer other than the first: `python -m components.rl.worker <work> <corpus> <sft>`."""

import sys
from pathlib import Path

from components.rl.params import Params
from components.rl.run import improve
from stagecraft.contract.params import load

if __name__ == "__main__":
    work, corpus, tuned = map(Path, sys.argv[1:])
    improve(load(Params, "rl"), corpus, tuned, work, None)
