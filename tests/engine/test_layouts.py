"""Tensor, sequence, pipeline, expert and data parallelism: the same training as one process, and checkpoints that change the layout."""

from contextlib import nullcontext
from itertools import chain

import pytest

from stagecraft.contract.errors import UserError
from stagecraft.engine.layout import Layout
from stagecraft.model.build import pipeline_stages
from tests.architectures import tiny
from tests.engine import layouts
from tests.layouts import ask

ONE = {"tensor": 1, "pipeline": 1, "context": 1, "expert": 1}
RECIPE = {"precision": "nvfp4"}
FULL = {"precision": "bf16", "mtp_depths": 2, "aux_loss": 1e-4}
PACKED = {**FULL, "aux_loss": 0.0, "expert_bias_rate": 0.0}


def size(**sizes):
    return {**ONE, **sizes}


CASES = {
    "dp4": {"layout": ONE},
    "tp2 dp2": {"layout": size(tensor=2)},
    "pp2 dp2": {"layout": size(pipeline=2)},
    "pp4": {"layout": size(pipeline=4)},
    "ep2 dp4": {"layout": size(expert=2)},
    "ep4": {"layout": size(expert=4)},
    "tp2 pp2": {"layout": size(tensor=2, pipeline=2)},
    "pp2 ep2": {"layout": size(pipeline=2, expert=2)},
    "tp2 ep2 dp2": {"layout": size(tensor=2, expert=2)},
    "tp2 pp2 ep2, MTP and balancing": {"layout": size(tensor=2, pipeline=2, expert=2), "options": FULL},
    "dp4, MTP": {"layout": ONE, "options": FULL},
    "pp4, MTP and balancing": {"layout": size(pipeline=4), "options": FULL},
    "tp2 dp2, then pp2 dp2": {"layout": size(tensor=2), "resume": size(pipeline=2)},
    "dp4, then tp2 pp2": {"layout": ONE, "resume": size(tensor=2, pipeline=2)},
    "dp4, then ep4": {"layout": ONE, "resume": size(expert=4)},
    "ep2, then ep2 tp2": {"layout": size(expert=2), "resume": size(tensor=2, expert=2)},
    # Places that fill a row up are routed too: they would move the balancing bias.
    "tp2 pp2, packed": {"layout": size(tensor=2, pipeline=2), "options": PACKED, "micro": 0},
    "cp4, packed": {"layout": size(context=4), "options": PACKED, "micro": 0},
    "cp4, means": {"layout": size(context=4), "options": PACKED, "micro": -1},
    "pp2 cp2, means": {"layout": size(pipeline=2, context=2), "options": PACKED, "micro": -1},
    "tp2 cp2, packed": {"layout": size(tensor=2, context=2), "options": PACKED, "micro": 0},
    "pp2 cp2, packed": {"layout": size(pipeline=2, context=2), "options": PACKED, "micro": 0},
    "cp2 ep4, packed": {"layout": size(context=2, expert=4), "options": PACKED, "micro": 0},
    "cp2 dp2": {"layout": size(context=2)},
    "cp4": {"layout": size(context=4)},
    "tp2 cp2": {"layout": size(tensor=2, context=2)},
    "pp2 cp2, balancing": {"layout": size(pipeline=2, context=2), "options": {"aux_loss": 1e-4}},
    "cp2 ep4": {"layout": size(context=2, expert=4)},
    "cp4, then tp2 dp2": {"layout": size(context=4), "resume": size(tensor=2)},
    "cp4, MTP": {"layout": size(context=4), "options": FULL},
    "tp2 ep2 dp2, experts again": {"layout": size(tensor=2, expert=2, recompute="moe"), "options": FULL},
    "pp2 cp2, all again": {"layout": size(pipeline=2, context=2, recompute="full"), "options": FULL},
    "cp2 ep4, packed, all again": {"layout": size(context=2, expert=4, recompute="full"), "options": PACKED, "micro": 0},
    "tp2 ep2 dp2, bfloat16": {"layout": size(tensor=2, expert=2), "options": {"dtype": "bfloat16", "scaling": 20.0}},
    "pp2, recipe": {"layout": size(pipeline=2), "options": RECIPE, "close": True},
    "tp2, recipe": {"layout": size(tensor=2), "options": RECIPE, "close": True},
    "cp2, recipe": {"layout": size(context=2), "options": RECIPE, "close": True},
    "ep2, recipe": {"layout": size(expert=2), "options": RECIPE, "close": True},
}
FRESH = {"pp4, fresh": {"layout": size(pipeline=4), "fresh": True}}


@pytest.fixture(scope="module")
def weights():
    from stagecraft.engine import parallel

    parallel.initialize(seed=7)
    found = {name: tensor.clone() for name, tensor in layouts.trainer_of(None, mtp_depths=2).weights().items()}
    parallel.shutdown()
    return found


@pytest.fixture(scope="module")
def told(weights, tmp_path_factory):
    """What four ranks say of all cases."""
    return ask("tests.engine.layouts", weights, {**CASES, **FRESH}, tmp_path_factory.mktemp("layouts"), STAGECRAFT_NUMERICS="eager")


def one_process(weights, case):
    trainer, micro = layouts.trainer_of(weights, **case.get("options", {})), case.get("micro", 1)
    with layouts.to_nearest():
        steps = layouts.take(trainer, layouts.STEPS, micro)
        heldout = trainer.loss(layouts.rows_of(99))
        return steps, heldout, layouts.take(trainer, layouts.STEPS, micro), trainer.weights()


@pytest.mark.slow
def test_no_two_layers_begin_alike(told):
    """Of stages that hold the same kinds of layers in the same order each has random numbers of its own."""
    weights = [tensor for name, tensor in told["pp4, fresh"][1].items() if tensor.dim() > 1 and "layers" in name]
    assert len(weights) > 10
    assert not any(one.equal(other) for at, one in enumerate(weights) for other in weights[:at])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "close" not in case])
def test_the_training_is_that_of_one_process(name, weights, told):
    found, whole = told[name]
    steps, heldout, after, expected = one_process(weights, CASES[name])
    narrow = CASES[name].get("options", {}).get("dtype") == "bfloat16"
    for seen, wanted in zip(chain(found["steps"], found["after"]), chain(steps, after)):
        assert seen == pytest.approx(wanted, rel=1.5e-2 if narrow else 2e-5)
    assert found["heldout"] == pytest.approx(heldout, rel=1e-3 if narrow else 1e-5)
    assert whole.keys() == expected.keys()
    for key, tensor in expected.items() if not narrow else ():  # whose first steps go by a gradient's sign, which rounding may turn
        assert (whole[key] - tensor).norm() <= 2e-4 * tensor.norm() + 1e-6, key


@pytest.mark.slow
def test_the_recipe_is_as_close_as_blocks_of_other_rows_let_it_be(weights, told):
    """A scale is of the rows, columns or experts' rows that a rank has: losses and what is learned are close, and unquantised is not.

    A pipeline has one process's blocks, and its first step: then the last bit of a gradient's norm, which is summed rank by rank, puts
    values on the other side of a rounding, on some processors from the second step on.
    """
    names = [name for name, case in CASES.items() if "close" in case]
    steps, heldout, after, _ = one_process(weights, {"options": RECIPE})

    def apart(other_steps, other_heldout, other_after):
        """(of the losses at most, of the held-out loss), relative."""
        losses = zip(chain(other_steps, other_after), chain(steps, after))
        return max(abs(seen[0] / wanted[0] - 1) for seen, wanted in losses), abs(other_heldout[0] / heldout[0] - 1)

    found = {name: apart(*(told[name][0][key] for key in ("steps", "heldout", "after"))) for name in names}
    assert told["pp2, recipe"][0]["steps"][0] == pytest.approx(steps[0], rel=5e-5)
    unquantised = apart(*one_process(weights, {})[:3])
    assert len(names) == 4 and all(losses < 8e-3 and learned < 1.5e-3 for losses, learned in found.values()), found
    assert unquantised[0] > 12e-3 and unquantised[1] > 2e-3


@pytest.mark.slow
def test_a_layer_keeps_its_format_wherever_the_pipeline_is_cut(weights, told):
    """The recipe goes by a layer's number in the whole model: the last one stays unquantised on the second stage, not on the first."""
    expected = layouts.formats(layouts.trainer_of(weights, precision="nvfp4"))
    assert told["pp2, recipe"][0]["formats"] == expected
    assert {"1.mixer.in_proj nvfp4", "4.mixer.in_proj nvfp4", "5.mlp.experts None"} <= {*expected}


@pytest.mark.parametrize("sizes, problem", [
    ({"tensor": 4}, "layout.tensor 4 does not divide num_attention_heads 2"), ({"pipeline": 4}, "more than the 3 layers"),
    ({"context": 3}, "needs rows of a multiple of 6 tokens, not 64"), ({"context": 8}, "does not divide the 4 Mamba heads"),
    ({"expert": 3}, "layout.expert 3 does not divide n_routed_experts 8")])
def test_what_does_not_divide_is_refused(sizes, problem):
    with pytest.raises(ValueError, match=problem):
        Layout(**size(**sizes)).check(tiny(), 64, "adamw")


@pytest.mark.parametrize("tensor, refused", [(1, False), (2, False), (4, False), (8, False), (3, True), (6, True)])
def test_tensor_parallelism_divides_keys_and_values_or_repeats_them(tensor, refused):
    shapes = tiny(num_attention_heads=24, num_key_value_heads=4, mamba_num_heads=24, n_groups=24, vocab_size=240,
                  moe_shared_expert_intermediate_size=48)
    with pytest.raises(ValueError, match="num_key_value_heads 4 nor is a multiple") if refused else nullcontext():
        Layout(**size(tensor=tensor)).check(shapes, 48, "adamw")


def test_muon_needs_whole_matrices():
    with pytest.raises(ValueError, match="muon needs whole matrices"):
        Layout(**size(tensor=2)).check(layouts.SHAPES, 32, "muon")


@pytest.mark.parametrize("sizes, ranks", [({"tensor": 2}, 3), ({"pipeline": 2, "expert": 4}, 4), ({"context": 2}, 3)])
def test_ranks_that_do_not_divide_are_refused(sizes, ranks):
    with pytest.raises(UserError, match="cannot be divided"):
        Layout(**size(**sizes)).data(ranks)


@pytest.mark.parametrize("pattern, stages, expected", [
    ("M*EME", 2, ["M*", "EME"]), ("M*E", 3, ["M", "*", "E"]), ("ABCDEFG", 3, ["AB", "CD", "EFG"]), ("MEM", 1, ["MEM"])])
def test_stages_are_even(pattern, stages, expected):
    assert pipeline_stages(pattern, stages) == expected
