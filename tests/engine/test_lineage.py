"""A token of a training row is traced to the place in the token file where it stands."""

import json

import stagecraft.megatron_cpu  # noqa: F401

import numpy as np
import pytest

from stagecraft.contract.errors import UserError
from stagecraft.data.indexed import read_indexed, write_indexed
from stagecraft.engine.datasets import open_blend
from stagecraft.engine.lineage import locate
from tests.checkpoints import VOCABULARY, tiny_tokenizer

PARAMS = {"steps": 6, "global_batch": 4, "sequence_length": 32, "seed": 3, "blend": "phase1"}


@pytest.mark.parametrize("files", [1, 3])
def test_every_token_of_every_row_is_found_where_it_stands(tmp_path, files):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    random = np.random.default_rng(0)
    for number in range(files):
        lengths = random.integers(1, 90, 40)
        documents = [random.integers(3, VOCABULARY, length).tolist() for length in lengths]
        write_indexed(tmp_path / "tokens" / f"part{number}", documents, VOCABULARY)
    blend = [[f"tokens/part{number}", (number + 1) / sum(range(files + 1))] for number in range(files)]
    (tmp_path / "blend.json").write_text(json.dumps({"phase1": blend}))
    rows = open_blend(tmp_path, "phase1", samples=24, sequence_length=32, seed=3, cache=tmp_path / "cache", eod=2, pad=0,
                      vocab_size=VOCABULARY)
    stored = {number: np.concatenate(read_indexed(tmp_path / "tokens" / f"part{number}")) for number in range(files)}
    used = set()
    for row in range(24):
        tokens = np.append(rows[row]["tokens"], rows[row]["labels"][-1])
        for position in (0, 7, 31, 32):
            prefix, place = locate(tmp_path, PARAMS, row, position)
            used.add(prefix.name)
            assert stored[int(prefix.name[-1])][place] == tokens[position], (row, position)
    assert len(used) == files


def test_what_was_not_trained_on_is_refused(tmp_path):
    with pytest.raises(UserError, match="24 rows of 32 tokens"):
        locate(tmp_path, PARAMS, 24, 0)
