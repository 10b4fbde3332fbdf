"""`python -m components.pretrain`: run the stage in the current directory, or say with --dry-run what it would be."""

import argparse
import sys

from stagecraft.contract.errors import UserError, exit_on_user_error
from stagecraft.contract.runner import cli


def dry_run() -> None:
    """The command line of the dry run."""
    parser = argparse.ArgumentParser(prog="python -m components.pretrain --dry-run", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", required=True)
    parser.add_argument("--ranks", type=int, metavar="N",
                        help="of the whole job (default: the profile's processes, or, if that is 1, the fewest that all phases can use)")
    parser.add_argument("--family", help="of GPUs whose formats are resolved, or cpu (default: that of the nodes the profile asks for)")
    options = parser.parse_args()
    if options.ranks is not None and options.ranks < 1:
        raise UserError(f"{options.ranks} ranks are none", where="--ranks", mend="give 1 or more")

    from components.pretrain.dry_run import main

    main(options.ranks, options.family)


if __name__ == "__main__":
    if "--dry-run" in sys.argv:
        exit_on_user_error(dry_run)
    cli("pretrain", epilog="With --dry-run it says what a run would be: ranks, memory, formats, recipe (--dry-run --help).")
