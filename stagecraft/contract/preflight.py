"""Check a whole profile before anything runs: every section against its stage's parameters and what it asks of a cluster, then each stage
that will run what it can foresee.

`python -m stagecraft.contract.preflight [--local] [--shown FILE] [STAGE ...] < params.yaml` exits with 0, or with 2 and one line; the
stages are those that will run. `kfp run` starts it as a process of its own: what it imports the conductor has no use for.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence

from stagecraft.contract.cluster import SECTION, parse_cluster
from stagecraft.contract.errors import UserError, exit_on_user_error
from stagecraft.contract.params import params_path, parse, parse_profile, section_of
from stagecraft.contract.stages import STAGES, Profile


def check(text: str, shown: str, runs: Sequence[str] = (), *, local: bool = False) -> None:
    """Parse every stage's section of a profile's text; the stages that run look at each other's, by their `foresee`, where they have one.

    Args:
        shown: the name the profile goes by in messages.
        runs: names of stages.
        local: they run on this machine, where the files are that a profile names.

    Raises:
        UserError: the first mistake found.
    """
    profile = parse_profile(text, shown)
    for name in profile:
        if name not in (*STAGES, SECTION):
            raise UserError("unknown section", where=f"{shown}: {name}", mend=f"the sections are {', '.join((*STAGES, SECTION))}")
    found = {name: section_of(profile, name, shown) for name in (*STAGES, SECTION)}
    pods = parse_cluster(found[SECTION], shown)
    sections = {name: parse(importlib.import_module(f"components.{name}.params").Params, found[name] or {}, f"{shown}: {name}")
                for name in STAGES}
    known: Profile = {name: sections[name] for name in runs}
    for name in runs:
        if importlib.util.find_spec(f"components.{name}.foresee"):
            importlib.import_module(f"components.{name}.foresee").foresee(known, None if local else pods[name])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stagecraft.contract.preflight", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE")
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--shown", default=str(params_path()), metavar="FILE", help="the profile's name in messages (default: %(default)s)")
    options = parser.parse_args()
    check(sys.stdin.read(), options.shown, options.stages, local=options.local)


if __name__ == "__main__":
    exit_on_user_error(main)
