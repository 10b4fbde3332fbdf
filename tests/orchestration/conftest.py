"""One project, run once by `kfp run`; each test works on a copy of it, the DVC cache included."""

import shutil
from pathlib import Path

import pytest

from tests.orchestration.project import Project, make_project


@pytest.fixture(scope="session")
def fresh_project(tmp_path_factory) -> Project:
    """A project nothing has run in."""
    return make_project(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory, fresh_project) -> Project:
    """A project after `kfp run pipelines/full.py`."""
    root = tmp_path_factory.mktemp("finished") / "project"
    shutil.copytree(fresh_project.root, root, symlinks=True)
    project = Project(root)
    done = project.kfp()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(project.executed()) == 7
    return project


def copy(project: Project, target: Path) -> Project:
    shutil.copytree(project.root, target, symlinks=True)
    return Project(target)


@pytest.fixture
def fresh(fresh_project, tmp_path) -> Project:
    return copy(fresh_project, tmp_path / "project")


@pytest.fixture
def finished(finished_project, tmp_path) -> Project:
    return copy(finished_project, tmp_path / "project")
