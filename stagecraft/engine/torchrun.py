"""torchrun that ends as its ranks did, exit code 2 where one met a user's mistake (torchrun alone makes it a 1), and whose restarts work.

`python -m stagecraft.engine.torchrun <arguments of torchrun>`. What starts nodes sees one exit code per node, and need not read a log.
"""

from __future__ import annotations

import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from stagecraft.contract.errors import EXIT_USER_ERROR


def main(arguments: list[str]) -> int:
    """Run torchrun; returns 0, 2 if a rank of this node ended with 2, 128 and a signal's number if that ended it, else 1."""
    # torch 2.13 shares one store among all attempts (elastic/rendezvous/dynamic_rendezvous.py), in which a rank that is quicker than
    # another after a restart finds the address the other had before. Without sharing every attempt has a store of its own.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    try:
        torchrun(arguments)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        print(f"rank {rank} was the first of this node to fail, with exit code {first.exitcode}", file=sys.stderr, flush=True)
        codes = {failure.exitcode for failure in error.failures.values()}
        return EXIT_USER_ERROR if EXIT_USER_ERROR in codes else 1
    except SignalException as ended:
        print(f"ended by {ended.sigval.name}, and its ranks with it", file=sys.stderr, flush=True)
        return 128 + ended.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
