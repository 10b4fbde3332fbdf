"""Small models that the stage starts from, made once by the stages before it."""

import json
import shutil

import pytest
from ruamel.yaml import YAML

from stagecraft.environments.demonstrations import demonstrations
from tests.stages.commands import project, run


def change(where, stage, **changes):
    yaml = YAML()
    profile = yaml.load(where / "params.yaml")
    profile[stage].update(changes)
    yaml.dump(profile, where / "params.yaml")


def copy(tuned, where, **changes):
    """A project that goes on from the fine-tuned model, with parameters of rl changed."""
    project(where, [])
    shutil.copytree(tuned / "artifacts", where / "artifacts")
    change(where, "rl", **{"malformed_penalty": 5.0, "max_new_tokens": 48, **changes})
    return where


@pytest.fixture(scope="package")
def tuned(tmp_path_factory):
    """A project up to its fine-tuned model, tuned long enough that some of its completions teach."""
    where = project(tmp_path_factory.mktemp("tuned") / "project", [])
    change(where, "sft", steps=120, decay_steps=20, pack_tokens=1024)
    for stage in ("curate", "pretrain", "sft"):
        run(stage, where)
    return where


@pytest.fixture(scope="package")
def unbroken(tuned, tmp_path_factory):
    """Gives the project of a finished run of one generator for a staleness."""
    found = {}

    def of(staleness):
        if staleness not in found:
            found[staleness] = copy(tuned, tmp_path_factory.mktemp("unbroken") / "project", staleness=staleness)
            run("rl", found[staleness])
        return found[staleness]

    return of


@pytest.fixture(scope="package")
def player(tuned, tmp_path_factory):
    """The same, tuned on conversations with environments: it calls tools, if hardly ever the right one."""
    where = tmp_path_factory.mktemp("player") / "project"
    project(where, [])
    (where / "artifacts").mkdir()
    for name in ("corpus", "base"):
        (where / "artifacts" / name).symlink_to(tuned / "artifacts" / name)
    files = []
    for name in ("warehouse", "guess"):
        path = where / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in demonstrations(name, 200, seed=0)))
        files.append(str(path))
    change(where, "sft", steps=120, decay_steps=40, pack_tokens=2048,
           data={"tasks": False, "files": files, "bad_rows": "fail"})
    run("sft", where)
    return where
