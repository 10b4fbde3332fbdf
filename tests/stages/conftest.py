"""One run of the training stages at their smallest, never interrupted, which the tests of this directory compare with."""

import pytest

from tests.stages.commands import project, run


@pytest.fixture(scope="package")
def finished(tmp_path_factory):
    """The project and its stages' metrics."""
    where = project(tmp_path_factory.mktemp("straight") / "project")
    return where, {stage: run(stage, where) for stage in ("curate", "pretrain", "sft", "rl")}
