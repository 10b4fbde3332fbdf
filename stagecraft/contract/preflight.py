"""Check a whole profile before anything runs: every section against its stage's parameters and what it asks of a cluster, then each stage
what it can foresee of the run.

`python -m stagecraft.contract.preflight [--local] < params.yaml` exits with 0, or with 2 and one line. `kfp run` starts it as a process
of its own: importing the stages loads their engines, which the conductor has no use for.
"""

from __future__ import annotations

import importlib
import os
import sys

from stagecraft.contract.cluster import SECTION, parse_cluster
from stagecraft.contract.errors import UserError, exit_on_user_error
from stagecraft.contract.params import params_path, parse, parse_profile
from stagecraft.contract.stages import STAGES


def check(text: str, shown: str, *, local: bool = False) -> None:
    """Parse every stage's section of a profile's text, and have each stage's `foresee`, where it has one, look at all of them.

    Args:
        shown: the name the profile goes by in messages.
        local: the run is on this machine, where the files are that a profile names.

    Raises:
        UserError: the first mistake found.
    """
    profile = parse_profile(text, shown)
    for name in profile:
        if name not in (*STAGES, SECTION):
            raise UserError("unknown section", where=f"{shown}: {name}", mend=f"the sections are {', '.join((*STAGES, SECTION))}")
    for name in (*STAGES, SECTION):
        if name not in profile:
            raise UserError(f"no section {name!r}", where=shown, mend="add it; the repository's params.yaml shows every key")
    parse_cluster(profile[SECTION], shown)
    stages = {name: importlib.import_module(f"components.{name}.stage") for name in STAGES}
    sections = {name: parse(stage.Params, profile[name] or {}, f"{shown}: {name}") for name, stage in stages.items()}
    for stage in stages.values():
        if foresee := getattr(stage, "foresee", None):
            foresee(sections, local)


def main() -> None:
    check(sys.stdin.read(), os.environ.get("STAGECRAFT_SHOWN") or str(params_path()), local="--local" in sys.argv)


if __name__ == "__main__":
    exit_on_user_error(main)
