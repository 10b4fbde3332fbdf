"""The trainer of reinforcement learning on several ranks: the updates of one rank, however the model and the packs are divided."""


import pytest

from components.rl.healing import FROZEN
from stagecraft.engine import parallel
from stagecraft.engine.packs import packed_batch
from stagecraft.engine.trainer import Optimization, Trainer
from tests.engine.test_layouts import size
from tests.layouts import ask
from tests.rl import layouts

CASES = {
    "dp4": size(), "tp2 dp2": size(tensor=2), "tp4": size(tensor=4), "pp2 dp2": size(pipeline=2), "ep4": size(expert=4),
    "cp2 dp2": size(context=2), "cp4": size(context=4), "tp2 cp2 ep2": size(tensor=2, context=2, expert=2),
    "pp2 cp2": size(pipeline=2, context=2), "tp2 pp2": size(tensor=2, pipeline=2),
}


@pytest.fixture(scope="module")
def weights():
    """Of a model whose MTP block has learned a little, and nothing else."""
    parallel.initialize(seed=7)
    trainer = Trainer(layouts.SHAPES, Optimization(lr=5e-3, steps=60), max_sequence_length=512, frozen=FROZEN, mtp_loss_scale=1.0,
                      mtp_depths=layouts.DEPTHS)
    for step in range(1, 61):
        trainer.step([packed_batch([(prompt + answer, [1] * len(prompt + answer)) for prompt, answer in layouts.answers(step)])])
    yield {name: tensor.clone() for name, tensor in trainer.weights().items()}
    parallel.shutdown()


@pytest.fixture(scope="module")
def told(weights, tmp_path_factory):
    """What four ranks say of all cases."""
    return ask("tests.rl.layouts", weights, CASES, tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="module")
def alone(weights):
    return layouts.run(weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_updates_are_those_of_one_rank(name, told, alone, weights):
    (found, whole), (expected, learned) = told[name], alone
    assert 0 < expected["steps"][0]["masked"] < 1 and expected["steps"][0]["kl"] == pytest.approx(0, abs=1e-6)
    assert expected["steps"][-1]["kl"] > 1e-4
    for seen, wanted in zip(found["steps"], expected["steps"]):
        assert seen == pytest.approx(wanted, rel=5e-5, abs=1e-6)
    assert 0 < expected["foreseen"][0] < 1 and found["foreseen"] == pytest.approx(expected["foreseen"], rel=1e-12)
    assert whole.keys() == learned.keys()
    for key, tensor in learned.items():
        assert (whole[key] - tensor).norm() <= 5e-4 * tensor.norm() + 1e-6, key
