"""`python -m components.pretrain`: run the stage in the current directory, or describe a run with --dry-run."""

import argparse
import sys

from stagecraft.contract.errors import UserError, exit_on_user_error
from stagecraft.contract.runner import cli


def dry_run() -> None:
    """The command line of the dry run."""
    parser = argparse.ArgumentParser(prog="python -m components.pretrain --dry-run", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", required=True)
    parser.add_argument("--ranks", type=int, metavar="N",
                        help="total number of ranks (default: the profile's processes, or, if that is 1, the fewest that suit all phases)")
    parser.add_argument("--family",
                        help="GPU family to resolve number formats for, or cpu (default: that of the nodes the profile asks for)")
    options = parser.parse_args()
    if options.ranks is not None and options.ranks < 1:
        raise UserError(f"must be at least 1, not {options.ranks}", where="--ranks", mend="give the total number of ranks, or omit it")

    from components.pretrain.dry_run import main

    main(options.ranks, options.family)


if __name__ == "__main__":
    if "--dry-run" in sys.argv:
        exit_on_user_error(dry_run)
    cli("pretrain", epilog="--dry-run describes a run without starting it: ranks, memory, formats, recipe (--dry-run --help).")
