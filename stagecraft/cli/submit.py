"""Submit a pipeline to a Kubeflow Pipelines API server."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

import requests
from google.protobuf.json_format import MessageToDict

from stagecraft.contract.errors import UserError

_ANSWER_SECONDS = 5
_POLL_SECONDS = 5
_ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")


def probe(endpoint: str, token: str | None) -> None:
    """Ask the server whether it is one.

    Raises:
        UserError: nothing answers, or it refuses us.
    """
    mend = "check the address and that the server is reachable (a port-forward, a VPN), or leave --endpoint out to run here"
    try:
        answer = _ask(endpoint, token, "healthz")
    except requests.RequestException as error:
        raise UserError(f"cannot reach the Kubeflow Pipelines server ({type(error).__name__})", where=endpoint, mend=mend) from None
    if answer.status_code in (401, 403):
        raise UserError(f"the server refuses us (HTTP {answer.status_code})", where=endpoint, mend="give a valid --existing-token")
    if not answer.ok:
        raise UserError(f"no Kubeflow Pipelines API there (HTTP {answer.status_code})", where=endpoint, mend=mend)


def refuse_paths(pipeline: Any, arguments: Mapping[str, str]) -> None:
    """Refuse to import what lies on this machine: KFP takes addresses, and says so only in a run that fails.

    Raises:
        UserError: names the pipeline's parameter.
    """
    specification = MessageToDict(pipeline.pipeline_spec)
    root, executors = specification["root"], specification["deploymentSpec"]["executors"]
    for _, task in sorted(root["dag"]["tasks"].items()):
        label = specification["components"][task["componentRef"]["name"]].get("executorLabel")
        if "importer" not in executors.get(label, ()):
            continue
        for given in task["inputs"]["parameters"].values():
            if name := given.get("componentInputParameter"):
                address = arguments.get(name, root["inputDefinitions"]["parameters"][name].get("defaultValue", ""))
                if "://" not in address:
                    raise UserError("a cluster imports from addresses, not from this machine", where=f"{name}={address}",
                                    mend="copy it to an object store that the pods may read, and name that: s3://BUCKET/PATH")


def submit(pipeline: Any, arguments: Mapping[str, str], options: argparse.Namespace) -> int:
    """Create a run from the pipeline. KFP's own cache is off: DVC's decides what is stale.

    Raises:
        UserError: the server refuses.
    """
    from kfp import Client
    from kfp_server_api import ApiException

    client = Client(host=options.endpoint, existing_token=options.existing_token)
    try:
        run = client.create_run_from_pipeline_func(pipeline, arguments=dict(arguments), experiment_name=options.experiment,
                                                   namespace=options.namespace, enable_caching=False)
    except ApiException as error:
        raise UserError(f"the server refuses the run (HTTP {error.status}): {_reason(error)}", where=options.endpoint,
                        mend="mend what it says; a server for several users wants a --namespace of theirs") from None
    print(f"submitted run {run.run_id} to {options.endpoint}")
    return watch(options.endpoint, options.existing_token, run.run_id) if options.watch else 0


def watch(endpoint: str, token: str | None, run: str) -> int:
    """Wait for a run to end, however long the server is away meanwhile; returns the exit status.

    The SDK's call has no end for a run that was terminated, nor for a request that nothing answers, as behind a port-forward.

    Raises:
        UserError: the server refuses, or knows no such run.
    """
    away = False
    while True:
        try:
            answer = _ask(endpoint, token, f"runs/{run}")
            trouble = f"HTTP {answer.status_code}" if answer.status_code >= 500 or answer.status_code == 429 else ""
        except requests.RequestException as error:
            trouble = type(error).__name__
        if trouble and not away:
            print(f"the server does not answer ({trouble}); the run goes on there, and is watched again as soon as it does", flush=True)
        away = bool(trouble)
        if not away:
            if not answer.ok or "json" not in answer.headers.get("Content-Type", ""):  # the page of a login
                raise UserError(f"the server says no more of run {run} (HTTP {answer.status_code})", where=endpoint,
                                mend="the run goes on if nobody has deleted it: look with `kfp run get`, and a valid --existing-token")
            if (state := answer.json().get("state")) in _ENDED:
                print(f"run {run}: {state}")
                return 0 if state == "SUCCEEDED" else 1
        time.sleep(_POLL_SECONDS)


def _reason(error: Any) -> str:
    """The server's own words, less its stack."""
    try:
        return json.loads(error.body)["message"].partition("\n")[0]
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def _ask(endpoint: str, token: str | None, what: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.get(f"{endpoint.rstrip('/')}/apis/v2beta1/{what}", headers=headers, timeout=_ANSWER_SECONDS)
