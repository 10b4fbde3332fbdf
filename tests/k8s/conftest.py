"""The built overlays."""

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
