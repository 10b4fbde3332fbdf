"""The side-by-side run: several checkpoints or endpoints, the same prompts, lengths, batch and hardware, repeated in turn."""

from components.evaluate.side_by_side.plan import Plan
from components.evaluate.side_by_side.run import run
from components.evaluate.side_by_side.subjects import Subject

__all__ = ["Plan", "Subject", "run"]
