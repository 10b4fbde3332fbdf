"""A rank other than the first of a laptop's fine-tuning: `python -m components.sft.worker <work> <corpus> <base>`."""

import sys
from pathlib import Path

from stagecraft.contract.ranks import leave_interrupts_to_the_first

if __name__ == "__main__":
    leave_interrupts_to_the_first()  # before the imports below, which take seconds

    from components.sft.params import Params
    from components.sft.train import train
    from stagecraft.checkpoint.canonical import read_checkpoint
    from stagecraft.contract.params import load

    train(load(Params, "sft"), *read_checkpoint(Path(sys.argv[3])), Path(sys.argv[2]), Path(sys.argv[1]), None)
