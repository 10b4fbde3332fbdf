"""What reinforcement learning refuses, told before there is a fine-tuned model."""

from __future__ import annotations

from pathlib import Path

from components.rl.memory import trainings
from components.rl.params import Params
from stagecraft.contract.cluster import Pod
from stagecraft.contract.errors import UserError
from stagecraft.contract.stages import Profile
from stagecraft.model.config import Architecture
from stagecraft.planning.fit import refuse_too_large


def foresee(profile: Profile, pod: Pod | None) -> None:
    """Refuse what this stage would refuse once there is a fine-tuned model.

    Raises:
        UserError: a layout that cannot divide the model, no MTP block to heal, sequences longer than the model's, an unknown family or
            environment; rows or a sandbox that are not here; GPUs of a cluster that are too small.
    """
    from stagecraft.environments.library import environment

    params, curate = profile["rl"], profile.get("curate")
    if "pretrain" in profile:
        architecture, ranks = profile["pretrain"].architecture, pod.ranks(params.processes) if pod else params.processes
        check_model(params, architecture, ranks)
        for name, part in params.parts.items():
            tokens = part.max_prompt_tokens + part.max_new_tokens
            architecture.refuse_longer(tokens, f"rl.stages.{name}: max_prompt_tokens + max_new_tokens")
        if pod and ranks:
            refuse_too_large(trainings(params, architecture, ranks), pod)
    for name, part in params.parts.items():
        if curate and not curate.synthetic.rl_rows and (unknown := sorted(set(part.mixture) - set(curate.tasks.flawed))):
            raise UserError(f"no prompts of family {unknown[0]!r}", where=f"rl.stages.{name}: mixture",
                            mend=f"name some of {', '.join(sorted(curate.tasks.flawed))}, which curate.tasks makes")
        for known in part.environments:
            server = part.environment_servers.get(known)
            if not (server and server.rows):
                environment(known)
    if not pod:
        check_rows(params)
        check_sandbox(params)


def check_rows(params: Params) -> None:
    """Refuse rows that are not here, in any of the stages: a later one would miss them after hours.

    Raises:
        UserError: names the environment and the file.
    """
    for part in params.parts.values():
        for known, server in part.environment_servers.items():
            if server.rows and not Path(server.rows).is_file():
                raise UserError("no such file of rows", where=f"rl.environment_servers.{known}.rows: {server.rows}",
                                mend="name a JSONL file")


def check_sandbox(params: Params) -> None:
    """Refuse environments played here that run what the policy writes, where nothing is run.

    Raises:
        UserError: names the stage.
    """
    from stagecraft.environments.confinement import refuse_without_sandbox
    from stagecraft.environments.library import environment

    for name, part in params.parts.items():
        here = [environment(known) for known in part.environments if known not in part.environment_servers]
        refuse_without_sandbox(here, f"rl.stages.{name}: environments")


def check_model(params: Params, architecture: Architecture, ranks: int | None) -> None:
    """Refuse what cannot be done with the model, or on so many ranks where their number is known.

    Raises:
        UserError: no MTP block to heal, or a layout that cannot divide model or ranks.
    """
    if params.healing.steps and not architecture.num_nextn_predict_layers:
        raise UserError("the model has no MTP block to heal", where="rl.healing.steps", mend="set it to 0")
    if ranks is not None:
        params.check(architecture, ranks)
