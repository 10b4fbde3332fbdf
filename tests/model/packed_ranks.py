"""What both ranks of test_packing.py run: a step of packs for each case; rank 0 keeps its losses and gradients.

    torchrun --nproc-per-node=2 -m tests.model.packed_ranks <directory>
"""

import json
import sys
from pathlib import Path

from stagecraft.megatron_cpu import ON_CPU  # noqa: F401

import torch
from safetensors.torch import load_file

from stagecraft.engine import parallel
from stagecraft.engine.packs import packed_batch
from tests.model.test_packing import drawn, told, trainer_of


def main() -> None:
    """Rank 0 has the first four sequences in two packs, rank 1 the rest in as many."""
    directory = Path(sys.argv[1])
    cases = json.loads((directory / "cases.json").read_text())
    parallel.initialize(seed=7)
    trainer = trainer_of(2, load_file(directory / "weights.safetensors"))
    rank = torch.distributed.get_rank()
    for case, lengths in enumerate(cases):
        sequences = drawn(lengths, case)
        own = (sequences[:1], sequences[1:4]) if rank == 0 else (sequences[4:6], sequences[6:])
        found = told(trainer, [packed_batch(part) for part in own])
        if rank == 0:
            torch.save(found, directory / f"{case}.pt")
    parallel.shutdown()


if __name__ == "__main__":
    main()
