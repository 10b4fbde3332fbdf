"""Shapes that the tests of the planner share."""

from pathlib import Path

from stagecraft.contract.params import parse, read_profile
from stagecraft.model.config import Architecture
from stagecraft.planning.architecture import nemotron_h

ROOT = Path(__file__).parents[2]
SUPER_SHAPES = parse(Architecture, read_profile(ROOT / "params" / "super-120b.yaml")["pretrain"]["architecture"], "architecture")
LAPTOP_SHAPES = parse(Architecture, read_profile(ROOT / "params.yaml")["pretrain"]["architecture"], "architecture")
SUPER, LAPTOP = nemotron_h(SUPER_SHAPES), nemotron_h(LAPTOP_SHAPES)
