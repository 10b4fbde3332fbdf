"""A rank other than the first of a laptop's pre-training: `python -m components.pretrain.worker <work> <corpus>`."""

import sys
from pathlib import Path

from stagecraft.contract.ranks import leave_interrupts_to_the_first

if __name__ == "__main__":
    leave_interrupts_to_the_first()  # before the imports below, which take seconds

    from components.pretrain.params import Params
    from components.pretrain.train import train
    from stagecraft.contract.params import load

    train(load(Params, "pretrain"), Path(sys.argv[2]), Path(sys.argv[1]), None)
