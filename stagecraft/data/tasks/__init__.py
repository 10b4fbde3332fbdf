"""Synthetic tasks whose answers can be verified: seeded families, disjoint splits, rows on disk."""

from stagecraft.data.tasks.families import FAMILIES, FLAWS, GOOD
from stagecraft.data.tasks.rows import read_rows, write_rows
from stagecraft.data.tasks.splits import assert_disjoint, check_families, divide_rows, draw_splits, prompt_key
from stagecraft.data.tasks.task import Task

__all__ = [
    "FAMILIES", "FLAWS", "GOOD", "Task", "assert_disjoint", "check_families", "divide_rows", "draw_splits", "prompt_key", "read_rows",
    "write_rows",
]
