"""Ray for stages that can use it: it is not in the lock, so that only who asks for it has to install it."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from stagecraft.contract.errors import UserError


def join(where: str, otherwise: str) -> ModuleType:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine; returns the package.

    Args:
        where: the parameter that asks for `ray`.
        otherwise: its value that does without.

    Raises:
        UserError: ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("`ray` needs the package ray, which is not installed", where=where,
                        mend=f"install ray, or take `{otherwise}`") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # The workers unpickle what they are sent: they must find this project, and whatever else this process does.
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}, log_to_driver=False)
    return ray
