"""A token of a training row is traced to the place in the token file where it stands."""

import stagecraft.megatron_cpu  # noqa: F401

import numpy as np
import pytest

from stagecraft.data.indexed import read_indexed
from stagecraft.engine.datasets import open_blend
from stagecraft.engine.lineage import locate
from tests.indexed import write_indexed

DATASET = {"samples": 24, "sequence_length": 32, "seed": 3, "eod": 2, "vocab_size": 100}


@pytest.mark.parametrize("files", [1, 3])
def test_every_token_of_every_row_is_found_where_it_stands(tmp_path, files):
    random = np.random.default_rng(0)
    blend = []
    for number in range(files):
        prefix = tmp_path / "tokens" / f"part{number}"
        write_indexed(prefix, [random.integers(3, 100, length).tolist() for length in random.integers(1, 90, 40)], 100)
        blend.append((prefix, (number + 1) / sum(range(files + 1))))
    rows = open_blend(blend, cache=tmp_path / "cache", **DATASET)
    stored = {prefix: np.concatenate(read_indexed(prefix)) for prefix, _ in blend}
    used = set()
    for row in range(24):
        tokens = np.append(rows[row]["tokens"], rows[row]["labels"][-1])
        for position in (0, 7, 31, 32):
            prefix, place = locate(blend, row, position, **DATASET)
            used.add(prefix)
            assert stored[prefix][place] == tokens[position], (row, position)
    assert len(used) == files


@pytest.mark.parametrize("row, position", [(24, 0), (-1, 0), (0, 33)])
def test_what_was_not_trained_on_is_refused(row, position):
    with pytest.raises(IndexError, match="24 rows of 32 tokens"):
        locate([], row, position, **DATASET)
