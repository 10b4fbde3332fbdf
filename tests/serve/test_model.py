"""Which model is served: by path, by the registry's alias, by a revision of git with DVC's own cache behind it."""

import shutil
import subprocess
import sys

import pytest

from stagecraft.cli.model import find
from stagecraft.contract import manifest, registry, tracking
from stagecraft.contract.errors import UserError
from tests.serve.conftest import promote


@pytest.fixture
def tree(project, tmp_path, monkeypatch):
    """A project directory with the artifact `aligned`, promoted; the current directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(project / "aligned", tmp_path / "artifacts" / "aligned")
    promote(tmp_path / "artifacts", "aligned", _digest(tmp_path / "artifacts" / "aligned"))
    return tmp_path


def _digest(directory):
    return manifest.read(directory)["digest"]


def _remake(directory):
    """The artifact becomes another one, in order with its manifest."""
    (directory / "README.md").write_text("another\n")
    manifest.write(directory, stage="rl", params={}, inputs={}, code="", environment={}, metrics={})


def test_the_promoted_model_must_be_the_one_that_was_evaluated(tree):
    assert find(None).digest == _digest(tree / "artifacts" / "aligned")
    _remake(tree / "artifacts" / "aligned")
    with pytest.raises(UserError, match="not the one that was evaluated: the digests differ - run dvc repro evaluate"):
        find(None)


def test_a_directory_without_a_manifest_has_no_digest(tree):
    (tree / "artifacts" / "aligned" / "manifest.json").unlink()
    found = find("artifacts/aligned")
    assert found.digest is None and found.path.as_posix() == "artifacts/aligned"


def test_the_champion_of_the_registry(tree, monkeypatch):
    uri = f"sqlite:///{tree}/mlflow.db"
    with pytest.raises(UserError, match="there is no registry"):
        find("champion")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = tracking.connect(uri)
    registry.promote(client, registry.read_promotion(tree / "artifacts" / "evaluation"))
    digest = _digest(tree / "artifacts" / "aligned")
    for name in ("champion", "models:/stagecraft@champion"):
        found = find(name)
        assert found.path == tree / "artifacts" / "aligned" and found.digest == digest
    for name in ("nobody", "models:/stagecraft@nobody"):
        with pytest.raises(UserError, match="nobody: no registered model has this alias"):
            find(name)
    with pytest.raises(UserError, match="no such model in the registry"):
        find("models:/other@champion")
    _remake(tree / "artifacts" / "aligned")
    with pytest.raises(UserError, match="another model lies here now"):
        find("champion")


def test_a_model_as_it_was_at_a_revision(tree):
    def run(*command):
        subprocess.run(command, check=True, capture_output=True)

    def commit(message):
        run("git", "add", "-A")
        run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-m", message)

    run("git", "init")
    run(sys.executable, "-m", "dvc", "init", "--quiet")
    (tree / "dvc.yaml").write_text("stages:\n  rl:\n    cmd: echo\n    outs:\n    - artifacts/aligned\n")
    run(sys.executable, "-m", "dvc", "commit", "--force", "--quiet")
    commit("one")
    aligned = tree / "artifacts" / "aligned"
    old = _digest(aligned)
    _remake(aligned)
    assert _digest(aligned) != old
    for found in (find("HEAD:artifacts/aligned"), find("aligned", "HEAD"), find(None, "HEAD")):
        assert found.digest == old and found.path.is_relative_to(".work/models")
        assert not [entry for entry in found.path.parent.iterdir() if entry != found.path]
    with pytest.raises(UserError, match=r"HEAD:artifacts/base: no output of that name at this revision - give one of artifacts/aligned"):
        find("HEAD:base")
    with pytest.raises(UserError, match=r"nothing:artifacts/aligned: no dvc\.lock at this revision"):
        find("nothing:aligned")
    shutil.rmtree(tree / ".work" / "models")
    shutil.rmtree(tree / ".dvc" / "cache")
    with pytest.raises(UserError, match="neither in its cache nor in its remote"):
        find("HEAD:aligned")
