"""Token files: Megatron's own reader and writer are the oracle; damage is told in one line."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stagecraft.contract.errors import UserError
from stagecraft.data.indexed import read_indexed
from tests.indexed import write_indexed

DOCUMENTS = [[5, 6, 2], [], [7] * 300 + [2], [2]]


@pytest.fixture(scope="module")
def megatron():
    """Megatron's module; the engine's shim first, so that megatron-core imports on a machine without CUDA."""
    import stagecraft.megatron_cpu  # noqa: F401

    from megatron.core.datasets import indexed_dataset

    return indexed_dataset


@pytest.mark.parametrize("vocab_size, dtype", [(2048, np.uint16), (65_499, np.uint16), (65_500, np.int32), (131_072, np.int32)])
def test_megatron_reads_what_we_write_and_writes_the_same_bytes(tmp_path, megatron, vocab_size, dtype):
    documents = [*DOCUMENTS, [vocab_size - 1, 0]]
    assert write_indexed(tmp_path / "ours", documents, vocab_size) == (5, 307)

    dataset = megatron.IndexedDataset(str(tmp_path / "ours"))
    assert [dataset[index].tolist() for index in range(len(dataset))] == documents
    assert dataset[0].dtype == dtype
    assert dataset.document_indices.tolist() == [0, 1, 2, 3, 4, 5]

    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=megatron.DType.optimal_dtype(vocab_size))
    for document in documents:
        builder.add_document(np.asarray(document, np.int64), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(documents=st.lists(st.lists(st.integers(0, 2047), max_size=20), max_size=8))
def test_our_reader_reads_back(tmp_path, documents):
    write_indexed(tmp_path / "tokens", documents, 2048)
    assert [list(sequence) for sequence in read_indexed(tmp_path / "tokens")] == documents


def test_an_impossible_token_is_refused_and_leaves_no_index(tmp_path):
    for document in ([2048], [-1]):
        with pytest.raises(ValueError, match="document 1"):
            write_indexed(tmp_path / "tokens", [[1], document], 2048)
    assert not (tmp_path / "tokens.idx").exists()


def test_damage_is_told(tmp_path):
    prefix = tmp_path / "tokens"
    with pytest.raises(UserError, match=r"tokens.idx: cannot read"):
        read_indexed(prefix)
    write_indexed(prefix, DOCUMENTS, 2048)
    index = prefix.with_suffix(".idx").read_bytes()
    prefix.with_suffix(".bin").write_bytes(prefix.with_suffix(".bin").read_bytes()[:-2])
    with pytest.raises(UserError, match=r"tokens.bin: 608 bytes where the index wants 610"):
        read_indexed(prefix)
    for damaged, message in ((index[:-1], "damaged index"), (b"x" + index[1:], "not a Meg"), (index[:20], "not a Meg")):
        prefix.with_suffix(".idx").write_bytes(damaged)
        with pytest.raises(UserError, match=message):
            read_indexed(prefix)
