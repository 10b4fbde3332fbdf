"""What stagecraft_startup.pth imports in the processes `kfp` and `dvc`, and in no other.

`kfp`: the stock console script starts with `from kfp.cli.__main__ import main`. That name is answered with our command line, which
knows `kfp run FILE.py` and hands everything else on. So it does not matter whose installation wrote bin/kfp last.
`dvc`: its stages say `python`. This environment's python comes first on PATH, activated or not.
"""

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path


class KfpFinder:
    """Answers the import of stock KFP's command line, and of nothing else."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "kfp.cli.__main__":
            return None
        return importlib.util.spec_from_file_location(name, Path(__file__).with_name("kfp.py"))


def arrange(program: str) -> None:
    """Set up this process for `program` (`kfp` or `dvc`)."""
    if program == "kfp":
        sys.meta_path.insert(0, KfpFinder)
    elif program == "dvc":
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


arrange(sys.orig_argv[2] if sys.orig_argv[1] == "-m" else Path(sys.orig_argv[1]).name)
