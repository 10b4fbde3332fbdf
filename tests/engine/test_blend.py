"""Rows of a blend: what a row teaches does not hang on which was read first, and a few rows come of many small files."""

import resource

import stagecraft.megatron_cpu  # noqa: F401

import numpy as np
import pytest

from stagecraft.contract.errors import UserError
from stagecraft.engine.datasets import batch_of, open_blend
from tests.indexed import write_indexed


def test_a_row_teaches_the_same_wherever_a_process_began_to_read(tmp_path):
    random = np.random.default_rng(0)
    documents = [random.integers(0, 4, 60).tolist() for _ in range(40)]  # every token, those at the vocabulary's edge too
    write_indexed(tmp_path / "tokens", documents, 4)

    def rows(first):
        blend = open_blend([(tmp_path / "tokens", 1.0)], samples=30, sequence_length=32, seed=0, cache=tmp_path, eod=2, vocab_size=4)
        return [batch_of(blend, range(row, row + 1)) for row in range(first, 30)]

    for whole, later in zip(rows(0)[16:], rows(16), strict=True):
        assert (whole.labels == later.labels).all() and (whole.tokens == later.tokens).all()
        assert whole.loss_mask.min() == later.loss_mask.min() == 1


def test_a_full_disk_is_one_line(tmp_path):
    """Files of this process may not grow: Megatron meets an OSError, as it does without space, and says less."""
    write_indexed(tmp_path / "tokens", [list(range(100))] * 40, 100)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(UserError, match=f"^{tmp_path}/order: the order of the rows cannot be written: .* - make room and start again$"):
            open_blend([(tmp_path / "tokens", 1.0)], samples=300, sequence_length=32, seed=0, cache=tmp_path / "order", eod=2,
                       vocab_size=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("documents", [1, 5])
@pytest.mark.parametrize("length", [64, 256, 1024])
def test_a_few_rows_come_of_many_small_files(tmp_path, documents, length):
    """Shares of the recipe's blend (arXiv 2604.12374, figure 5), of which Megatron's half per cent of surplus leaves a row too few."""
    random, shares = np.random.default_rng(0), (22.4, 14.0, 11.3, 11.1, 6.5, 6.4, 6.1, 5.7, 5.0, 3.3, 2.1, 1.8, 1.8, 1.7, 0.6, 0.2)
    files = []
    for number, share in enumerate(shares):
        files.append((tmp_path / f"file{number}", share / sum(shares)))
        write_indexed(files[-1][0], [random.integers(3, 500, int(random.integers(50, 400))).tolist() for _ in range(documents)], 512)
    for samples in (8, 16, 64, 256):
        blend = open_blend(files, samples=samples, sequence_length=length, seed=0, cache=tmp_path, eod=2, vocab_size=512)
        assert len(batch_of(blend, range(samples)).tokens) == samples
