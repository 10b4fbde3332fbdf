"""Stages one after the other: what each says differently, and that it goes on from the policy of the one before."""

import json
from dataclasses import replace

import pytest

from components.pretrain.params import Params as Pretraining
from components.rl.params import EnvironmentServer, Params, Stage
from stagecraft.contract.cluster import read_cluster
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import load, parse, read_profile
from stagecraft.contract.work import work_key
from stagecraft.engine.layout import Layout
from tests.rl.conftest import copy
from tests.rl.test_prompts import PARAMS
from tests.rl.test_staleness import curve
from tests.stages.commands import ROOT, kill_when, run


def test_a_stage_differs_in_what_it_says_alone():
    parts = replace(PARAMS, seed=5, stages={"first": {}, "second": {"lr": 1e-5, "generators": {"count": 2}}, "third": {}}).parts
    first, second, third = parts.values()
    assert list(parts) == ["first", "second", "third"]
    own = {key: getattr(PARAMS, key) for key in vars(first)}
    assert vars(first) == own | {"seed": 5} and vars(third) == own | {"seed": 7}
    assert vars(second) == own | {"seed": 6, "lr": 1e-5, "generators": replace(PARAMS.generators, count=2)}


def test_where_it_is_done_is_no_part_of_what_is_done():
    """A killed run goes on under another layout, with a judge or a server at another address, also one that a stage says."""
    def key(**changes):
        return work_key(replace(PARAMS, **changes), {}, "")

    stages, layout = {"one": {}, "two": {"lr": 1e-5}}, Layout(tensor=1, pipeline=1, context=2, expert=1)
    divided = {"one": {"layout": {"context": 2}}, "two": {"layout": {"expert": 2}, "lr": 1e-5}}
    assert key(stages=stages) == key(stages=divided) == key(stages=stages, layout=layout, processes=2)
    assert key(stages=stages) != key(stages={"one": {}, "two": {"lr": 2e-5}})
    assert key(checkpoint_every=7) == key() == key(preferences=replace(PARAMS.preferences, url="http://judge/v1", model="", concurrency=1))

    def judged(**endpoint):
        asked = {"enabled": True, "url": "http://a/v1", "model": "judge"} | endpoint
        return {"rlvr": {}, "rlhf": {"environments": {}, "preferences": asked}}

    moved = judged(url="http://b:8000/v1", key_variable="KEY", concurrency=2, timeout_seconds=9.0)
    assert key(stages=judged()) == key(stages=moved) != key(stages=judged(model="another"))

    def served(**changes):
        return {"swe": {"url": "http://a:8000", "rows": "", "turns": 9} | changes}

    def playing(**changes):
        return key(environments={"swe": 1.0}, environment_servers={"swe": EnvironmentServer(**served(**changes)["swe"])})

    assert playing() == playing(url="http://b:8001") != playing(turns=8)
    there, moved, longer = ({"one": {"environments": {"swe": 1.0}, "environment_servers": served(**changes)}}
                            for changes in ({}, {"url": "http://b:8001"}, {"turns": 10}))
    assert key(stages=there) == key(stages=moved) != key(stages=longer)


@pytest.mark.parametrize(("stages", "message"), [
    ({}, "stages is empty: name one"),
    ({"../up": {}}, "stages has the name '../up'"),
    ({"rlvr": {"lrr": 1e-5}}, r"rl.stages.rlvr.lrr: unknown key"),
    ({"rlvr": {"preferences": {"enable": True}}}, r"rl.stages.rlvr.preferences.enable: unknown key"),
    ({"rlvr": {"healing": {"steps": 0}}}, "stages.rlvr has healing, which comes once"),
    ({"one": {"preferences": {"enabled": True}}, "two": {"preferences": {"enabled": True}}}, "stages one and two both train a reward"),
    ({"rlvr": {"pack_tokens": 100}}, r"rl.stages.rlvr: pack_tokens 100 is less than"),
    *(({"rlvr": {"environments": {"x": 1.0}, "environment_servers": {"x": {"url": url, "rows": "", "turns": 1}}}},
       r"rl.stages.rlvr.environment_servers.x.url: .* - correct the value") for url in ("localhost:8000", "http://x:PORT", "http:///", "")),
])
def test_a_stage_that_cannot_be_is_one_line(stages, message):
    with pytest.raises(UserError, match=message):
        parse(Params, read_profile(ROOT / "params.yaml")["rl"] | {"stages": stages}, "rl")


def test_the_recipes_profile_has_the_stages_of_the_report():
    """Prompts and completions of a step, tokens, learning rate, KL, overlong filter: table of section 3.2."""
    parts = load(Params, "rl", ROOT / "params" / "super-120b.yaml").parts

    def figures(part: Stage) -> tuple[object, ...]:
        return (part.prompts_per_step, part.generations_per_prompt, part.max_prompt_tokens + part.max_new_tokens, part.lr, part.kl,
                part.overlong_filter)

    assert {name: figures(part) for name, part in parts.items()} == {
        "rlvr_1": (256, 16, 49_152, 3e-6, 0, False), "rlvr_2": (256, 16, 65_536, 3e-6, 0, False),
        "rlvr_3": (256, 16, 65_536, 3e-6, 0, False), "swe_pivot": (64, 16, 131_072, 1e-6, 0, True),
        "swe": (16, 32, 196_608, 1e-6, 0, True), "rlhf": (128, 16, 49_152, 1e-6, 1e-4, False)}
    assert [name for name, part in parts.items() if part.preferences.enabled] == ["rlhf"]


def test_the_recipes_profile_divides_the_model_as_the_report_does():
    """TP, CP and EP, on the nodes that the profile asks for; packs and the model divide into them."""
    profile = ROOT / "params" / "super-120b.yaml"
    params, pod = load(Params, "rl", profile), read_cluster(profile)["rl"]
    rlvr = {f"rlvr_{number}": (4, 1, 8, 16) for number in (1, 2, 3)}
    assert {name: tuple(vars(part.layout).values())[:4] for name, part in params.parts.items()} == {
        **rlvr, "swe_pivot": (8, 1, 16, 8), "swe": (8, 1, 16, 16), "rlhf": (4, 1, 4, 32)}
    params.check(load(Pretraining, "pretrain", profile).architecture, pod.nodes * pod.gpu.count)
    assert [part.layout.data(128) for part in params.parts.values()] == [4, 4, 4, 1, 1, 8]


@pytest.mark.slow
def test_a_second_stage_goes_on_from_the_policy_of_the_first_and_a_kill_in_it_changes_no_bit(tuned, unbroken, tmp_path):
    alone = unbroken(0)
    changes = {"staleness": 0, "stages": {"first": {}, "second": {"steps": 3, "kl": 0.01, "lr": 2.0e-4}}}
    straight = copy(tuned, tmp_path / "straight", **changes)
    metrics = run("rl", straight)
    rows, before = curve(straight), curve(alone)
    columns = ("step", "reward", "loss", "grad_norm", "mismatch")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [[row.get(key) for key in columns] for row in rows[:4]] == [[row.get(key) for key in columns] for row in before]
    # On-policy from its first token on, and no divergence from what it began with: that is the first stage's policy, not the tuned model.
    assert rows[4]["mismatch"] < 1e-4 and abs(rows[4]["kl"]) < 1e-6
    rollouts = (straight / "artifacts/aligned/rollouts.jsonl").read_text()
    assert rollouts.startswith((alone / "artifacts/aligned/rollouts.jsonl").read_text())
    assert {json.loads(line)["step"] for line in rollouts.splitlines()} == set(range(7))
    assert metrics["first_reward_first"] == metrics["reward_first"] and metrics["second_reward_last"] == rows[6]["reward"]
    assert metrics["completions"] == 7 * 16 and metrics["accepted_length_healed"] >= 1

    broken = copy(tuned, tmp_path / "broken", **changes)
    kill_when("rl", broken, "rl/*/stages/second/rollouts/00000001.jsonl")
    assert list((broken / ".work/rl").glob("*/stages/first/policy/model.safetensors"))
    run("rl", broken)
    for name in ("model.safetensors", "rollouts.jsonl"):
        assert (broken / "artifacts/aligned" / name).read_bytes() == (straight / "artifacts/aligned" / name).read_bytes(), name
