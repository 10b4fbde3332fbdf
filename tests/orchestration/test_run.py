"""What `kfp run` does before the pipeline: no former parameters lost, a pipeline that is none."""

from pathlib import Path

import pytest

from stagecraft.cli.run import in_force, load_pipeline, parse_arguments, write_params
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import read_profile
from stagecraft.contract.repository import check_checkout
from tests.orchestration.project import REPOSITORY


def test_no_second_profile_takes_the_copy_of_what_the_first_replaced(tmp_path):
    params, work = tmp_path / "params.yaml", tmp_path / ".work"
    params.write_text("by: hand\n")
    first = write_params(tmp_path, "one.yaml", "by: one\n", [])
    assert first == ["now holds one.yaml (the former is kept as .work/params.before.yaml)"]
    second = write_params(tmp_path, "two.yaml", "by: two\n", ["by: one -> two"])
    assert second == ["now holds two.yaml (the former is kept as .work/params.before-2.yaml)", "by: one -> two"]
    assert write_params(tmp_path, "two.yaml", "by: two\n", []) == []
    params.write_text("by: hand\n")
    assert write_params(tmp_path, "one.yaml", "by: one\n", []) == first  # that one is kept already
    assert {path.name: path.read_text() for path in work.iterdir()} == {"params.before.yaml": "by: hand\n",
                                                                        "params.before-2.yaml": "by: one\n"}


def test_a_profile_is_in_force_before_it_is_params_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("sft: 1\n")
    with in_force("sft: 2\n"):
        assert read_profile() == {"sft": 2}
    assert read_profile() == {"sft": 1}


def test_a_pipeline_that_is_no_python(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGECRAFT_ROOT", "")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text("from kfp import dsl\n\ndef mine(:\n    pass\n")
    with pytest.raises(UserError, match=r"mine\.py:3: not valid Python: invalid syntax - mend the syntax"):
        load_pipeline(tmp_path, file)


@pytest.mark.parametrize(("local", "given", "expected"), [
    (True, "artifacts/base", "/where/i/am/artifacts/base"), (True, "/a/base", "/a/base"), (True, "s3://b/base", "s3://b/base"),
    (False, "artifacts/base", "artifacts/base")])
def test_an_artifact_is_named_from_where_the_user_is(monkeypatch, local, given, expected):
    monkeypatch.setenv("STAGECRAFT_ROOT", str(REPOSITORY))
    pipeline = load_pipeline(REPOSITORY, REPOSITORY / "pipelines" / "post_training.py")
    here = Path("/where/i/am") if local else None
    assert parse_arguments(pipeline, [f"base_uri={given}"], here) == {"base_uri": expected}


def test_dvc_needs_git_unless_it_is_told_not_to(tmp_path):
    project = tmp_path / "project"
    (project / ".dvc").mkdir(parents=True)
    with pytest.raises(UserError, match="no git checkout"):
        check_checkout(project)
    (project / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    check_checkout(project)
    (project / ".dvc" / "config.local").unlink()
    (tmp_path / ".git").mkdir()  # a project in a larger repository
    check_checkout(project)
