"""A rank of the trainer other than the first: `python -m components.rl.worker <work> <corpus> <sft>`."""

import sys
from pathlib import Path

from stagecraft.contract.ranks import leave_interrupts_to_the_first

if __name__ == "__main__":
    leave_interrupts_to_the_first()  # before the imports below, which take seconds

    from components.rl.params import Params
    from components.rl.run import improve
    from stagecraft.contract.params import load

    work, corpus, tuned = map(Path, sys.argv[1:])
    improve(load(Params, "rl"), corpus, tuned, work, None)
