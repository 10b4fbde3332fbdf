"""What serving refuses, told before there is a model."""

from __future__ import annotations

from stagecraft.contract.cluster import Pod
from stagecraft.contract.stages import Profile


def foresee(profile: Profile, pod: Pod | None) -> None:
    """Refuse what the servers would refuse, the deployed ones in a cluster that nobody watches.

    Raises:
        UserError: sequences longer than the model's.
    """
    if "pretrain" in profile:
        for part in ("server", "deployment"):
            profile["pretrain"].architecture.refuse_longer(getattr(profile["serve"], part).max_model_len, f"serve.{part}.max_model_len")
