"""Every profile in the repository is complete: each stage's parameters parse."""

import importlib
from pathlib import Path

import pytest

from stagecraft.contract.params import load
from stagecraft.contract.stages import STAGES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("profile", [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))], ids=lambda path: path.name)
@pytest.mark.parametrize("stage", STAGES)
def test_a_profile_parses(profile, stage):
    load(importlib.import_module(f"components.{stage}.stage").Params, stage, profile)
