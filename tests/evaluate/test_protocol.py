"""Of the code, the protocol holds what judges the tasks that are asked and what computes the answers, and nothing else."""

import pytest

from components.evaluate import protocol
from components.evaluate.benchmarks import describe, load
from tests.evaluate.conftest import PARAMS


@pytest.fixture
def read(monkeypatch):
    """Names of the files that a digest is made of."""
    names, sha256 = [], protocol.sha256
    monkeypatch.setattr(protocol, "sha256", lambda path: names.append(path.name) or sha256(path))
    return names


def test_the_rows_are_judged_by_their_verifiers(read):
    protocol.source_digest(["stagecraft.environments.verify"])
    assert sorted(read) == ["reward.py", "verifiers.py", "verify.py", "written.py"]


@pytest.mark.parametrize(("task", "judges", "others"), [
    ("instructions", {"instructions.py", "constraints.py"}, {"software.py", "sql.py", "haystack.py", "verifiers.py"}),
    ("warehouse", {"episodes.py", "software.py", "sandbox.py"}, {"haystack.py", "instructions.py"}),
    ("needle", {"haystack.py"}, {"episodes.py", "software.py", "constraints.py"}),
])
def test_a_benchmark_is_judged_by_what_its_file_names(task, judges, others, read):
    describe(load(task, PARAMS.benchmarks, 0))
    assert judges <= {*read} and not others & {*read}


def test_the_plugin_counts_where_it_is_at_work(read, monkeypatch):
    assert len(protocol.plugin_digest()) == 64
    assert {"states.cpp", "loops.hpp", "moe.py"} <= {*read}
    monkeypatch.setattr(protocol, "built_for_gpus", lambda: True)
    assert protocol.plugin_digest() == ""
