"""Submit a pipeline to a Kubeflow Pipelines API server."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import requests

from stagecraft.contract.errors import UserError

_PROBE_SECONDS = 5


def probe(endpoint: str, token: str | None) -> None:
    """Ask the server whether it is one.

    Raises:
        UserError: nothing answers, or it refuses us.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    mend = "check the address and that the server is reachable (a port-forward, a VPN), or leave --endpoint out to run here"
    try:
        answer = requests.get(f"{endpoint.rstrip('/')}/apis/v2beta1/healthz", headers=headers, timeout=_PROBE_SECONDS)
    except requests.RequestException as error:
        raise UserError(f"cannot reach the Kubeflow Pipelines server ({type(error).__name__})", where=endpoint, mend=mend) from None
    if answer.status_code in (401, 403):
        raise UserError(f"the server refuses us (HTTP {answer.status_code})", where=endpoint, mend="give a valid --existing-token")
    if not answer.ok:
        raise UserError(f"no Kubeflow Pipelines API there (HTTP {answer.status_code})", where=endpoint, mend=mend)


def submit(pipeline: Any, arguments: Mapping[str, str], options: argparse.Namespace) -> int:
    """Create a run from the pipeline. KFP's own cache is off: DVC's decides what is stale."""
    from kfp import Client

    client = Client(host=options.endpoint, namespace=options.namespace or "kubeflow", existing_token=options.existing_token)
    run = client.create_run_from_pipeline_func(pipeline, arguments=dict(arguments), experiment_name=options.experiment,
                                               enable_caching=False)
    print(f"submitted run {run.run_id} to {options.endpoint}")
    if not options.watch:
        return 0
    state = run.wait_for_run_completion().state
    print(f"run {run.run_id}: {state}")
    return 0 if state == "SUCCEEDED" else 1
