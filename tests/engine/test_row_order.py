"""An order of rows that is not as it was written is made again, with the same rows; what is whole is not."""

import stagecraft.megatron_cpu  # noqa: F401

import numpy as np
import pytest

from stagecraft.engine import row_order
from stagecraft.engine.datasets import open_blend
from tests.engine.test_lineage import DATASET
from tests.indexed import write_indexed


@pytest.fixture
def read(tmp_path):
    random, blend = np.random.default_rng(0), []
    for number in range(2):
        prefix = tmp_path / "tokens" / f"part{number}"
        write_indexed(prefix, [random.integers(3, 100, length).tolist() for length in random.integers(1, 90, 40)], 100)
        blend.append((prefix, 0.5))

    def rows():
        row_order.unseal(tmp_path / "order")
        dataset = open_blend(blend, cache=tmp_path / "order", **DATASET)
        row_order.seal(tmp_path / "order")
        return np.stack([dataset[row]["tokens"] for row in range(24)])

    return rows


@pytest.mark.parametrize("damage", ["short", "empty", "another order", "no seal"])
@pytest.mark.parametrize("which", ["shuffle_index", "dataset_index"])
def test_a_damaged_order_is_made_again(tmp_path, read, damage, which):
    before = read()
    file = max((tmp_path / "order").glob(f"*{which}.npy"))
    content = file.read_bytes()
    if damage == "no seal":
        (tmp_path / "order" / row_order.SEAL).unlink()
    if damage == "another order":
        np.save(file, np.load(file)[::-1])
    else:
        file.write_bytes(b"" if damage == "empty" else content[:-5])
    assert np.array_equal(read(), before)
    assert file.read_bytes() == content


def test_a_whole_order_is_left_alone(tmp_path, read):
    before = read()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "order").glob("*.npy")}
    assert np.array_equal(read(), before)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "order").glob("*.npy")} == written
