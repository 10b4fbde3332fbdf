"""The work directory of a stage: found again by the same work, kept until other work has succeeded."""

import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from components.pretrain.params import Params as PretrainParams
from stagecraft.contract import code, runner
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import load, params
from stagecraft.contract.runner import finished, run_stage
from stagecraft.contract.starting import wait_for_first
from stagecraft.contract.work import work_key


@params
class Params:
    PLACEMENT: ClassVar = ("checkpoint",)

    steps: int
    mistake: bool = False
    checkpoint: bool = True


def main(params, inputs, outputs, log):
    if params.mistake:
        raise UserError("no such file", where="corpus.txt")
    name = "step-00000001" if params.checkpoint else "index"
    (log.work / name).mkdir(exist_ok=True)
    if params.steps > 5:
        raise RuntimeError("killed")
    (outputs["corpus"] / "rows").write_text("rows")
    return {"rows": 1, "share": float("nan")}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the stage with these parameters; what it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "components.curate.stage", SimpleNamespace(Params=Params, main=main))
    monkeypatch.setitem(sys.modules, "components.curate.params", SimpleNamespace(Params=Params))
    monkeypatch.setattr(runner, "code_digest", lambda name: "c")
    monkeypatch.setattr(runner, "describe_environment", dict)

    def with_parameters(expected=None, **values):
        (tmp_path / "params.yaml").write_text("curate:\n" + "".join(f"  {key}: {value}\n" for key, value in values.items()))
        if expected is None:
            run_stage("curate")
        else:
            with pytest.raises(expected):
                run_stage("curate")
        return capsys.readouterr().err

    return with_parameters


def works(tmp_path):
    return {path.name for path in (tmp_path / ".work" / "curate").iterdir()}


def test_a_start_with_a_mistake_takes_no_checkpoint_away(run, tmp_path):
    assert "begins anew" not in run(RuntimeError, steps=10)
    (mine,) = works(tmp_path)
    said = run(UserError, steps=10, mistake="true")
    assert f"begins anew: parameters, inputs or code are not those of .work/curate/{mine}, which is kept until this is done" in said
    run(UserError, steps=11, mistake="true")
    run(UserError, steps=12, mistake="true")
    assert mine in works(tmp_path) and len(works(tmp_path)) == 2
    assert (tmp_path / ".work" / "curate" / mine / "step-00000001").is_dir()
    assert "begins anew" not in run(RuntimeError, steps=10)  # back where it was


def test_of_other_work_the_newest_with_a_checkpoint_is_kept_until_success(run, tmp_path):
    run(RuntimeError, steps=10)
    os.utime(tmp_path / ".work" / "curate" / works(tmp_path).pop(), (1, 1))
    before = works(tmp_path)
    run(RuntimeError, steps=11)
    (second,) = works(tmp_path) - before
    run(RuntimeError, steps=12, checkpoint="false")
    run(RuntimeError, steps=13, checkpoint="false")
    assert second in works(tmp_path) and len(works(tmp_path)) == 2
    run(steps=1)
    assert works(tmp_path) == set()


@pytest.mark.parametrize("wrong", [
    lambda: Path("params.yaml").write_text("curate: {steps: 2}"),
    lambda: Path("artifacts/corpus/rows").write_text("row"),
    lambda: Path("artifacts/corpus/manifest.json").unlink(),
    lambda: Path("metrics/curate.json").write_text("{}"),
    lambda: Path("metrics/curate.json").unlink(),
    lambda: shutil.rmtree("plots/curate"),
    lambda: runner._work_directory(runner.STAGES["curate"], work_key(Params(steps=1), {}, "c")),  # it was not through
])
def test_what_is_finished_is_whole_and_of_the_same_work(run, wrong):
    run(steps=1)
    assert finished("curate")
    Path("params.yaml").write_text("curate: {steps: 1, checkpoint: false}")  # where and how safely it is done
    assert finished("curate")
    wrong()
    assert not finished("curate")


def test_patience_and_watching_are_not_what_makes_a_training_another(monkeypatch):
    monkeypatch.delenv("STAGECRAFT_PARAMS", raising=False)
    asked = load(PretrainParams, "pretrain")
    more = replace(asked, max_skipped_steps=asked.max_skipped_steps + 5, diagnose_every=asked.diagnose_every + 1, keep_checkpoints=9,
                   checkpoint_every=1)
    assert work_key(more, {}, "code") == work_key(asked, {}, "code") != work_key(replace(asked, seed=asked.seed + 1), {}, "code")


def test_the_code_of_a_stage_is_what_it_reaches(tmp_path, monkeypatch):
    """Work in progress outlives a change of what the stage does not run."""
    monkeypatch.setattr(code, "_ROOT", tmp_path)
    for name, text in {
        ".dvcignore": "components/*/dry_run.py\ncomponents/curate/shown/", "components/curate/shown/page.py": "import stagecraft.cli.ui",
        "components/curate/stage.py": "from stagecraft.data.rows import read",
        "components/curate/dry_run.py": "import stagecraft.planning.plan",
        "stagecraft/data/rows.py": "import stagecraft.native", "stagecraft/native.py": "", "stagecraft/data/loops.cpp": "",
        "stagecraft/planning/plan.py": "", "stagecraft/cli/ui.py": "import stagecraft.data", "stagecraft/contract/runner.py": "",
        "stagecraft/contract/manifest.py": "", "stagecraft/contract/division.py": "", "stagecraft/contract/figures.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = code.code_digest("curate")
    for name in ("stagecraft/planning/plan.py", "stagecraft/cli/ui.py", "components/curate/dry_run.py", "components/curate/shown/page.py"):
        (tmp_path / name).write_text("changed = 1")
        assert code.code_digest("curate") == before, name
    for name in ("stagecraft/native.py", "stagecraft/data/loops.cpp", "components/curate/stage.py", "stagecraft/contract/runner.py",
                 "stagecraft/contract/division.py", "stagecraft/contract/figures.py"):
        (tmp_path / name).write_text("changed = 1")
        after = code.code_digest("curate")
        assert after != before, name
        before = after


@pytest.mark.parametrize("mistake", ["true", "false"])
def test_a_rank_that_is_late_does_not_wait_for_the_first_that_has_ended(run, monkeypatch, mistake):
    for name, value in (("RANK", "0"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1234")):
        monkeypatch.setenv(name, value)
    run(UserError if mistake == "true" else None, steps=1, mistake=mistake)
    started = time.monotonic()
    wait_for_first(runner._begun("curate"))
    assert time.monotonic() - started < 5
