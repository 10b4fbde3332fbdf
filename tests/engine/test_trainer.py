"""The training engine: what it optimises, and that an interruption leaves no trace."""

import copy
import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from torch.optim._muon import _zeropower_via_newtonschulz

from components.rl.healing import FROZEN
from stagecraft.engine import checkpoints, parallel
from stagecraft.engine.batch import Batch
from stagecraft.engine.optimizers import FusedAdam, orthogonalise
from stagecraft.engine.trainer import Optimization, Trainer
from tests.architectures import tiny
from tests.processes import torchrun

SCHEDULE = Optimization(lr=2e-3, min_lr=1e-4, steps=12, warmup_steps=3, decay_steps=4, weight_decay=0.1)


def new_trainer(optimizer="adamw", schedule=SCHEDULE, **options):
    parallel.initialize(seed=7)
    return Trainer(tiny(), replace(schedule, optimizer=optimizer), max_sequence_length=64,
                   **{"precision": "nvfp4", "mtp_depths": 2, **options})


def batch(seed, rows=2):
    row = torch.randint(0, 60, (rows, 17), generator=torch.Generator().manual_seed(seed)).repeat(1, 4)[:, :65]
    return Batch(row[:, :-1].contiguous(), row[:, 1:].contiguous(), torch.ones(rows, 64))


@pytest.mark.parametrize("recompute", ["moe", "full"])
@pytest.mark.parametrize("options", [
    {"mtp_depths": 1, "diagnose_every": 2}, {"mtp_depths": 1, "optimizer": "muon", "dtype": torch.bfloat16},
    {"mtp_depths": 2}, {"mtp_depths": 2, "precision": "bf16", "frozen": FROZEN, "expert_bias_rate": 0.0}])
def test_what_is_computed_again_changes_no_bit(recompute, options):
    """Loss, norm, MTP losses, figures of health, weights and balancing; where two depths share a block, but for the order of a sum."""
    def trained(**more):
        trainer = new_trainer(**options, **more)
        results = [trainer.step([batch(2 * step), batch(2 * step + 1)]) for step in range(2)]
        return results, {name: tensor for name, tensor in trainer.module.state_dict().items() if torch.is_tensor(tensor)}, trainer

    kept, again = trained(), trained(recompute=recompute)
    exact = options["mtp_depths"] == 1
    for one, other in zip(kept[0], again[0]):
        assert other == one if exact else (other.loss, other.grad_norm) == pytest.approx((one.loss, one.grad_norm), rel=1e-5)
    start = new_trainer(**options).module.state_dict()
    moved = [name for name, tensor in kept[1].items() if not torch.equal(tensor, start[name])]
    assert moved and ("frozen" not in options or all(name.startswith("mtp.") for name in moved))
    for name in moved:
        difference = (again[1][name].float() - kept[1][name].float()).abs().max()
        assert difference == 0 if exact else difference <= 2e-5, name
    assert again[2].loss(batch(9)) == pytest.approx(kept[2].loss(batch(9)), rel=0 if exact else 1e-5)


def take_steps(steps, first, second):
    """Step two (optimizer, tensors) side by side, with the gradients that the first one's tensors give."""
    for step in range(steps):
        for p, q in zip(first[1], second[1]):
            p.grad = torch.sin(p.detach() * (step + 1))
            q.grad = p.grad.clone()
        first[0].step()
        second[0].step()


def test_adam_equals_torch():
    torch.manual_seed(0)
    ours = [torch.randn(5, 7, requires_grad=True), torch.randn(3, requires_grad=True)]
    theirs = copy.deepcopy(ours)
    a, b = FusedAdam(ours, lr=0.01, weight_decay=0.1), torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1)
    take_steps(20, (a, ours), (b, theirs))
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p, q)


def test_muon_equals_torch(monkeypatch):
    """But for its orthogonalisation, which is in bfloat16: it has ours here."""
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", lambda matrix, *_: orthogonalise(matrix))
    torch.manual_seed(0)
    ours = [torch.randn(24, 8, requires_grad=True), torch.randn(8, 24, requires_grad=True)]
    theirs = copy.deepcopy(ours)
    for p in ours:
        p.muon = 3.0
    a, b = FusedAdam(ours, lr=0.01, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.03, weight_decay=0.1, momentum=0.95)
    take_steps(5, (a, ours), (b, theirs))
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p, q)


def test_orthogonalised_singular_values_are_near_one():
    for shape in ((16, 40), (40, 16), (3, 16, 40)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(1))))
        assert values.min() > 0.6 and values.max() < 1.3


def test_orthogonalised_is_torchs_in_bfloat16():
    for shape in ((16, 40), (40, 16)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        theirs = _zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)
        torch.testing.assert_close(orthogonalise(matrix), theirs.float(), atol=3e-2, rtol=0)


@pytest.mark.parametrize("decay", [4, 0])
def test_the_schedule_warms_up_stays_decays_by_the_square_root_and_goes_on_at_another_rate(decay):
    schedule = replace(SCHEDULE, decay_steps=decay, further_steps=2, further_lr=5e-4)
    trainer = new_trainer(schedule=schedule, precision="bf16", mtp_depths=0)
    rates = [trainer.step([batch(0)]).lr for _ in range(schedule.all_steps)]
    stable = SCHEDULE.steps - decay
    expected = [2e-3 * s / 3 if s <= 3 else 2e-3 if s <= stable else 1e-4 + (1 - math.sqrt((s - stable) / decay)) * 1.9e-3
                for s in range(1, 13)]
    assert rates == pytest.approx([*expected, 5e-4, 5e-4])


def values(trainer):
    """What the optimizer steps of every parameter."""
    return {name: getattr(parameter, "main_param", parameter).detach().float().clone()
            for name, parameter in trainer.module.named_parameters()}


def test_a_step_is_adamws_with_clipped_gradients_and_decayed_matrices():
    schedule = Optimization(lr=1e-2, steps=4, weight_decay=0.5, betas=(0.6, 0.7), clip=0.3)
    trainer = new_trainer(schedule=schedule, precision="bf16", mtp_depths=0)
    own = {name: value.requires_grad_() for name, value in values(trainer).items()}
    oracle = torch.optim.AdamW([{"params": [value for value in own.values() if value.dim() > 1], "weight_decay": 0.5},
                                {"params": [value for value in own.values() if value.dim() == 1], "weight_decay": 0.0}],
                               lr=1e-2, betas=(0.6, 0.7))
    for step in range(3):
        norm = trainer.step([batch(step)]).grad_norm
        gradients = {name: parameter.main_grad for name, parameter in trainer.module.named_parameters()}
        assert norm > 0.5
        assert math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values())) == pytest.approx(0.3, rel=1e-4)
        for name, value in own.items():
            value.grad = gradients[name].clone()
        oracle.step()
        for name, value in values(trainer).items():
            torch.testing.assert_close(value, own[name].detach(), rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_steps_the_matrices_of_the_layers_at_a_rate_of_its_own(dtype):
    moved = []
    for scale in (1.0, 3.0):
        schedule = replace(SCHEDULE, weight_decay=0.0, muon_lr_scale=scale)
        trainer = new_trainer("muon", schedule, precision="bf16", mtp_depths=0, dtype=dtype)
        before = values(trainer)
        trainer.step([batch(0)])
        moved.append({name: (value - before[name]).norm() for name, value in values(trainer).items()})
    squares = {name: bool(moments["exp_avg_sq"].any()) for name, moments in trainer.moments().items()}  # which Muon leaves at zero
    adam = {name for name in moved[0] if "embedding" in name or "output_layer" in name or "mlp.experts" in name} | {
        name for name, parameter in trainer.module.named_parameters() if parameter.dim() != 2}
    assert {name for name, any_ in squares.items() if any_} == adam and len(squares) > len(adam) + 5
    for name in squares:
        assert float(moved[1][name] / moved[0][name]) == pytest.approx(1.0 if name in adam else 3.0, rel=1e-3), name


def test_matrices_begin_with_the_profiles_spread():
    found = values(new_trainer(precision="bf16", mtp_depths=0))
    for name in ("embedding.word_embeddings.weight", "decoder.layers.0.mixer.in_proj.weight", "output_layer.weight"):
        assert float(found[name].std()) == pytest.approx(tiny().initializer_range, rel=0.05), name


def test_what_is_frozen_keeps_its_value_and_nothing_else_does():
    trainer = new_trainer(precision="bf16", mtp_depths=0, frozen=("router", "embedding"))
    before = values(trainer)
    trainer.step([batch(0)])
    kept = {name for name, value in values(trainer).items() if torch.equal(value, before[name])}
    assert kept == {name for name in before if "router" in name or "embedding" in name} and len(kept) == 2


def test_every_step_rounds_with_noise_of_its_own():
    """At a rate that moves no float32 number, nothing else is different from one step to the next."""
    def norms():
        trainer = new_trainer(schedule=Optimization(lr=1e-30, steps=9), mtp_depths=0)
        return [trainer.step([batch(0)]).grad_norm for _ in range(3)]

    assert norms() == norms() and len(set(norms())) == 3


def test_it_learns():
    trainer = new_trainer()
    results = [trainer.step([batch(0)]) for _ in range(SCHEDULE.steps)]
    assert results[-1].loss < results[0].loss - 0.5
    assert results[-1].mtp_losses[0] < results[0].mtp_losses[0]


@pytest.mark.parametrize("depths", [0, 1, 2])
def test_the_gradient_is_that_of_the_loss_and_of_the_depths_mean_in_its_share(depths):
    """Both ways along it the sum changes by its norm."""
    trainer = new_trainer(schedule=Optimization(lr=1e-30, steps=9, clip=1e9), precision="bf16", mtp_depths=depths, mtp_loss_scale=0.7,
                          aux_loss=0.0, expert_bias_rate=0.0)
    parameters = list(trainer.module.parameters())

    def step():
        result = trainer.step([batch(0)])
        return result.loss + 0.7 * sum(result.mtp_losses) / max(depths, 1), result.grad_norm

    norm = step()[1]
    directions, far = [parameter.main_grad / norm for parameter in parameters], 2e-3
    found = []
    for way in (1, -2, 1):  # and back
        for parameter, direction in zip(parameters, directions):
            parameter.data.add_(direction, alpha=way * far)
        found.append(step()[0])
    assert (found[0] - found[1]) / (2 * far) == pytest.approx(norm, rel=0.01)


def test_experts_are_balanced_by_the_auxiliary_loss_and_by_their_biases():
    """Each expert's bias moves by its rate, away from those that have more tokens than the mean."""
    routers = []
    for aux_loss, rate in ((0.0, 0.0), (0.1, 0.0), (0.0, 0.05)):
        trainer, loads = new_trainer(precision="bf16", mtp_depths=0, aux_loss=aux_loss, expert_bias_rate=rate), []
        for module in trainer.module.modules():
            if type(module).__name__ == "GroupedExperts":
                module.register_forward_hook(lambda module, inputs, output, loads=loads: loads.append(inputs[1].double()))
        trainer.step([batch(0)])
        (bias,) = (buffer for name, buffer in trainer.module.named_buffers() if name.endswith("expert_bias"))
        torch.testing.assert_close(bias.double(), rate * torch.sign(loads[0].mean() - loads[0]))
        (router,) = (parameter for name, parameter in trainer.module.named_parameters() if "router.weight" in name)
        routers.append(router.main_grad.clone())
    assert torch.equal(routers[0], routers[2])
    assert (routers[1] - routers[0]).norm() > 0.01 * routers[0].norm()


def test_loss_is_a_mean_over_tokens_whatever_the_microbatches():
    whole, parts = batch(3, rows=4), [batch(3, rows=4) for _ in range(2)]
    whole.loss_mask[0, 10:] = 0
    for part, rows in zip(parts, (slice(0, 1), slice(1, 4))):
        part.tokens, part.labels, part.loss_mask = part.tokens[rows], part.labels[rows], whole.loss_mask[rows]
    one = new_trainer(precision="bf16", mtp_depths=0, aux_loss=0.0).step([whole])
    trainer = new_trainer(precision="bf16", mtp_depths=0, aux_loss=0.0)
    two = trainer.step(parts)
    assert two.loss == pytest.approx(one.loss, rel=1e-5)
    assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16, "optimizer": "muon"}], ids=["float32", "bfloat16, muon"])
def test_resumed_steps_equal_uninterrupted_ones_bit_for_bit(tmp_path, options):
    straight = new_trainer(**options)
    expected = []
    for step in range(8):
        expected.append(straight.step([batch(step)]))
        if step == 3:
            checkpoints.save(tmp_path, straight)
    resumed = new_trainer(**options)
    checkpoints.resume(tmp_path, resumed)
    assert [resumed.step([batch(step)]) for step in range(4, 8)] == expected[4:]
    for name, tensor in resumed.weights().items():
        assert torch.equal(tensor, straight.weights()[name]), name


def test_steps_that_changed_nothing_are_none_of_adams_after_a_resume(tmp_path):
    straight = new_trainer(precision="bf16", mtp_depths=0)
    straight.pass_over()
    straight.step([batch(0)])
    straight.step([batch(1)], lambda logits, batch: (logits.sum() * math.nan, batch.loss_mask.sum(), {}))
    checkpoints.save(tmp_path, straight)
    resumed = new_trainer(precision="bf16", mtp_depths=0)
    checkpoints.resume(tmp_path, resumed)
    assert (resumed.steps_done, resumed.updates) == (3, 1)
    assert resumed.step([batch(2)]) == straight.step([batch(2)])
    for name, tensor in resumed.weights().items():
        assert torch.equal(tensor, straight.weights()[name]), name


def test_a_step_passed_over_moves_the_schedule_alone():
    trainer, other = (new_trainer(precision="bf16", mtp_depths=0) for _ in range(2))
    before = trainer.weights()
    trainer.pass_over()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.weights().items())
    assert trainer.step([batch(0)]).lr == [other.step([batch(step)]).lr for step in range(2)][1]


def test_a_checkpoint_from_before_the_first_step_can_be_resumed(tmp_path):
    trainer = new_trainer(precision="bf16", mtp_depths=0)
    checkpoints.save(tmp_path, trainer)
    resumed = new_trainer(precision="bf16", mtp_depths=0)
    assert checkpoints.resume(tmp_path, resumed) == {}
    assert resumed.step([batch(0)]) == trainer.step([batch(0)])


def broken(logits, batch):
    return logits.sum() * math.nan, batch.loss_mask.sum(), {}


def overflowing(logits, batch):
    """A finite loss, 0, whose gradient is infinite."""
    return (logits - logits.detach()).square().sum().sqrt(), batch.loss_mask.sum(), {}


def unsteep(logits, batch):
    """A loss that is no number, whose gradient is zero."""
    return logits.sum() * 0 + math.nan, batch.loss_mask.sum(), {}


@pytest.mark.parametrize("loss", [broken, overflowing, unsteep])
def test_a_skipped_step_moves_nothing(loss):
    trainer = new_trainer(precision="bf16", mtp_depths=0, expert_bias_rate=1e-3)
    trainer.step([batch(0)])
    before = {name: tensor.clone() for name, tensor in trainer.weights().items()}
    moments = copy.deepcopy(trainer.moments())
    result = trainer.step([batch(1)], loss)
    assert result.skipped and trainer.steps_done == 2
    assert (math.isfinite(result.loss), math.isfinite(result.grad_norm)) == (loss is overflowing, loss is unsteep)
    biases = [tensor for name, tensor in before.items() if "e_score_correction_bias" in name]
    assert biases and all(bias.any() for bias in biases)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.weights().items())
    assert all(torch.equal(tensor, moments[name][key]) for name, own in trainer.moments().items() for key, tensor in own.items())
    assert not trainer.step([batch(2)]).skipped


RANK = """
import json
import stagecraft.megatron_cpu
from tests.engine.test_trainer import *
def main():
    import torch.distributed as dist
    # MTP and balancing losses are means per microbatch in megatron-core: they depend on how a batch is cut.
    trainer = new_trainer(precision="bf16", mtp_depths=0, aux_loss=0.0)
    rank = dist.get_rank()
    whole = [batch(step, rows=4) for step in range(4)]
    for b in whole:
        b.loss_mask[0, 5:] = 0
    mine = [Batch(*(t[2 * rank:2 * rank + 2] for t in (b.tokens, b.labels, b.loss_mask))) for b in whole]
    results = [trainer.step([b if dist.get_world_size() == 1 else m]) for b, m in zip(whole, mine)]
    rounded = new_trainer(precision="nvfp4", mtp_depths=0, aux_loss=0.0).step([whole[0]])  # the same rows on every rank
    if rank == 0:
        print("RESULT", json.dumps([[[r.loss, r.grad_norm, r.tokens] for r in results], [rounded.loss, rounded.grad_norm]]))
main()
"""


def test_two_processes_equal_one_but_for_the_noise_of_their_rounding():
    (one, alone), (two, both) = (json.loads(torchrun(ranks, "--no-python", sys.executable, "-c", RANK, STAGECRAFT_NUMERICS="eager")
                                            .split("RESULT")[1]) for ranks in (1, 2))
    for own, theirs in zip(one, two):
        assert theirs == pytest.approx(own, rel=1e-5)
    assert both[0] == pytest.approx(alone[0], rel=1e-5) and both[1] != pytest.approx(alone[1], rel=1e-5)
