"""A user's mistake is one line and exit code 2; finished stages stay finished."""

import re
import shutil
from pathlib import Path

import pytest

from stagecraft.cli.run import check_params
from stagecraft.contract.errors import UserError
from tests.orchestration.project import REPOSITORY, Project


def one_line(done) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.stdout
    return lines[0]


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("amount: 3 ", "amonut: 3 ", "params.yaml: sft.amonut: unknown key"),
    ("amount: 3 ", "amount: three ", "params.yaml: sft.amount: Input should be a valid integer (found 'three')"),
    ("amount: 3 ", "amount: 0 ", "params.yaml: sft.amount: Input should be greater than 0 (found 0)"),
    ("amount: 3 ", "amount: 3.5 ", "params.yaml: sft.amount"),
    ("rate: 3e-4\n  fail: ''\nquantize", "fail: ''\nquantize", "params.yaml: rl.rate: missing"),
    ("serve:", "sevre:", "params.yaml: sevre: unknown section"),
    ("sft:", "sft: [", "params.yaml:"),
    ("memory: 8Gi ", "memory: 8GB ", "params.yaml: cluster.curate.memory: no amount of memory, such as 8Gi (found '8GB')"),
])
def test_a_wrong_profile_stops_before_anything_runs(fresh, old, new, expected):
    fresh.edit("params.yaml", old, new)
    assert expected in one_line(fresh.kfp())
    assert fresh.executed() == []


@pytest.mark.parametrize(("argument", "expected"), [
    ("pretrain.stpes=3", "pretrain.stpes: unknown parameter"),
    ("pretrain.amount=-1", "pretrain.amount: Input should be greater than 0"),
    ("pretrain.amount=&a [*a]", "params.yaml: pretrain: no plain values"),
    ("nonsense=1", "nonsense=1: unknown parameter"),
    ('sft_params={"amount": 1}', 'sft_params={"amount": 1}: unknown parameter - write stage.key=value'),
])
def test_a_wrong_override_changes_nothing(fresh, argument, expected):
    before = (fresh.root / "params.yaml").read_text()
    assert expected in one_line(fresh.kfp(argument))
    assert (fresh.root / "params.yaml").read_text() == before


def test_a_refused_run_with_another_profile_changes_nothing(fresh, tmp_path):
    """The profile is named from where the user is, as the pipeline is."""
    elsewhere = Project(tmp_path / "elsewhere")
    elsewhere.root.mkdir()
    before = (fresh.root / "params.yaml").read_text()
    (elsewhere.root / "mine.yaml").write_text(before.replace("amount: 3 ", "amount: 30 "))
    done = elsewhere.run("stagecraft.cli.kfp", "run", str(fresh.root / "pipelines" / "full.py"), "--profile", "mine.yaml",
                         "sft.rate=0.5", "nope.x=1", PYTHONPATH=str(fresh.root))
    assert "nope.x=1: unknown parameter" in one_line(done)
    assert "params.yaml:" not in done.stdout
    assert (fresh.root / "params.yaml").read_text() == before


def test_a_mistake_in_another_profile_is_told_under_its_name(tmp_path):
    (tmp_path / "mine.yaml").write_text("rl: {}\n")
    with pytest.raises(UserError, match=r"^-mine/mine\.yaml: no section 'curate' - add it"):
        check_params(Path(__file__).parents[2], tmp_path / "mine.yaml", "-mine/mine.yaml", [], [], local=True)


def test_without_git_nothing_begins(fresh):
    shutil.rmtree(fresh.root / ".git")
    assert "no git checkout, which DVC needs - clone the repository, or `git init` here" in one_line(fresh.kfp("sft.rate=0.5"))
    assert "rate: 0.5" not in (fresh.root / "params.yaml").read_text()


def test_a_profile_of_the_environment_is_never_recorded_as_params_yaml(finished):
    text = (finished.root / "params.yaml").read_text()
    (finished.root / "mine.yaml").write_text(text.replace("amount: 3 ", "amount: 30 "))
    by_dvc = finished.dvc("repro", "-f", "-s", "sft", STAGECRAFT_PARAMS="mine.yaml")
    assert by_dvc.returncode != 0
    assert "error: $STAGECRAFT_PARAMS: DVC goes by params.yaml alone (found mine.yaml)" in by_dvc.stderr
    assert "Traceback" not in by_dvc.stderr
    assert "$STAGECRAFT_PARAMS: kfp run goes by params.yaml alone" in one_line(finished.kfp(STAGECRAFT_PARAMS="mine.yaml"))
    assert finished.executed() == []
    same = finished.dvc("repro", "-f", "-s", "sft", STAGECRAFT_PARAMS=str(finished.root / "params.yaml"))
    assert same.returncode == 0, same.stderr
    by_hand = finished.run("components.sft", STAGECRAFT_PARAMS="mine.yaml")
    assert by_hand.returncode == 0, by_hand.stderr
    assert finished.executed() == ["sft", "sft"]


def test_overrides_are_written_to_the_profile_comments_kept(finished):
    done = finished.kfp("rl.amount=44", "rl.rate=0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "params.yaml: rl.amount: 4 -> 44" in done.stdout
    text = (finished.root / "params.yaml").read_text()
    assert re.search(r"amount: 44 +# things to count", text)
    assert finished.executed() == ["rl", "quantize", "evaluate", "serve"]


def test_a_mistake_inside_a_stage(fresh):
    fresh.edit("params.yaml", "fail: ''\nsft", "fail: user\nsft")
    line = one_line(fresh.kfp())
    assert line == "error: corpus.txt: nothing to read - write something into it"
    assert fresh.executed() == ["curate", "pretrain"]
    fresh.edit("params.yaml", "fail: user", "fail: ''")
    assert fresh.kfp().returncode == 0
    assert fresh.executed() == ["pretrain", "sft", "rl", "quantize", "evaluate", "serve"]  # curate stayed finished


def test_a_defect_shows_the_end_of_the_log(fresh):
    fresh.edit("params.yaml", "fail: ''\npretrain", "fail: crash\npretrain")
    done = fresh.kfp()
    assert done.returncode == 1
    assert "RuntimeError: a defect of the stage" in done.stdout


def test_a_changed_byte_is_noticed_where_the_artifact_is_read(finished):
    weights = finished.root / "artifacts" / "base" / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[7] ^= 1
    weights.write_bytes(data)
    alone = finished.run("components.sft")
    assert "artifacts/base/weights.bin: corrupt file" in one_line(alone)
    from_there = finished.kfp("--from", "sft")
    assert "artifacts/base/weights.bin: corrupt file" in one_line(from_there)
    assert finished.executed() == []
    assert finished.kfp().returncode == 0  # a whole run finds the sound copy in DVC's cache
    assert finished.executed() == []
    assert finished.run("components.sft").returncode == 0


def test_no_such_pipeline_and_no_server(fresh):
    assert "no such pipeline" in one_line(fresh.run("stagecraft.cli.kfp", "run", "pipelines/none.py"))
    line = one_line(fresh.kfp("--endpoint", "http://127.0.0.1:9", "sft.rate=0.5"))
    assert "http://127.0.0.1:9: cannot reach the Kubeflow Pipelines server" in line
    assert "rate: 0.5" not in (fresh.root / "params.yaml").read_text()


@pytest.mark.parametrize(("arguments", "environment"), [(("--endpoint", "http://127.0.0.1:9"), {}),
                                                        ((), {"KFP_ENDPOINT": "http://127.0.0.1:9"})])
def test_a_later_start_is_for_runs_here(fresh, arguments, environment):
    line = one_line(fresh.kfp("--from", "sft", "sft.rate=0.5", *arguments, **environment))
    assert line.startswith("error: --from sft: only a run here can take artifacts as they lie - ")
    assert "rate: 0.5" not in (fresh.root / "params.yaml").read_text()


def test_a_project_without_a_run_is_not_judged(fresh):
    line = one_line(fresh.run("tests.acceptance.check", PYTHONPATH=str(REPOSITORY)))
    assert line == "error: metrics/curate.json: no run has come to its end here - make run"
