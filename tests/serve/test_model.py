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


@pytest.mark.parametrize("verdict", ["[]", '"aligned"', '{"promoted": "nvfp4"}', '{"promoted": ["x"], "digest": "d"}', "{}"])
def test_a_verdict_that_is_none_is_one_line(tree, verdict):
    (tree / "artifacts" / "evaluation" / "promotion.json").write_text(verdict)
    with pytest.raises(UserError, match=r"promotion\.json: no verdict on promotion: .* - run dvc repro evaluate"):
        find(None)


def test_looking_for_a_champion_makes_no_registry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri, database in ((None, "mlflow.db"), (f"sqlite:///{tmp_path}/other.db?timeout=5", f"{tmp_path}/other.db")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri) if uri else monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with pytest.raises(UserError, match=f"champion: no such directory, and there is no registry: {database} does not exist"):
            find("champion")
    assert not list(tmp_path.iterdir())


def test_a_revision_is_no_option_of_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    for name, revision in (("aligned", "--output=x"), ("--output=x:aligned", None)):
        with pytest.raises(UserError, match=r"--output=x:artifacts/aligned: no dvc\.lock at this revision"):
            find(name, revision)
    assert [path.name for path in tmp_path.iterdir()] == [".git"]


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
