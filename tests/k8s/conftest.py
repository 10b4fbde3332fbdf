"""The built overlays, and what is looked up in them."""

import json
from pathlib import Path

import pytest

from tests.k8s.kustomize import build

ROOT = Path(__file__).parents[2]
OVERLAYS = sorted(path.parent.name for path in (ROOT / "k8s" / "overlays").glob("*/kustomization.yaml"))


@pytest.fixture(scope="session", params=OVERLAYS)
def overlay(request):
    return request.param


@pytest.fixture(scope="session")
def objects(overlay):
    return build(ROOT / "k8s" / "overlays" / overlay)


@pytest.fixture(scope="session")
def expressions(objects):
    """Every PromQL expression, of rules, dashboard and autoscaler."""
    dashboard = json.loads(only(objects, "ConfigMap", "stagecraft-dashboard")["data"]["stagecraft.json"])
    found = [rule["expr"] for group in only(objects, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
    found += [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    found += [trigger["metadata"]["query"] for trigger in only(objects, "ScaledObject")["spec"]["triggers"]]
    return found


def only(objects: list[dict], kind: str, name: str | None = None) -> dict:
    (item,) = [item for item in objects if item["kind"] == kind and name in (None, item["metadata"]["name"])]
    return item
