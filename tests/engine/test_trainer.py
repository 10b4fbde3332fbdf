"""The training engine: what it optimises, and that an interruption leaves no trace."""

import copy
import math
import os
import resource
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch

from stagecraft.contract.errors import UserError
from stagecraft.engine import checkpoints, loop, parallel
from stagecraft.engine.batch import Batch
from stagecraft.engine.optimizers import FusedAdam, orthogonalise
from stagecraft.engine.saving import Saver
from stagecraft.engine.trainer import Optimization, Trainer
from tests.architectures import tiny

SCHEDULE = Optimization(lr=2e-3, min_lr=1e-4, steps=12, warmup_steps=3, decay_steps=4, weight_decay=0.1)


def new_trainer(optimizer="adamw", **options):
    parallel.initialize(seed=7)
    return Trainer(tiny(), replace(SCHEDULE, optimizer=optimizer), max_sequence_length=64,
                   **{"precision": "nvfp4", "mtp_depths": 2, **options})


def batch(seed, rows=2):
    row = torch.randint(0, 60, (rows, 17), generator=torch.Generator().manual_seed(seed)).repeat(1, 4)[:, :65]
    return Batch(row[:, :-1].contiguous(), row[:, 1:].contiguous(), torch.ones(rows, 64))


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


def test_muon_equals_torch():
    torch.manual_seed(0)
    ours = [torch.randn(24, 8, requires_grad=True), torch.randn(8, 24, requires_grad=True)]
    theirs = copy.deepcopy(ours)
    for p in ours:
        p.muon = 3.0
    a, b = FusedAdam(ours, lr=0.01, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.03, weight_decay=0.1, momentum=0.95)
    take_steps(5, (a, ours), (b, theirs))
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p, q, atol=2e-2, rtol=2e-2)  # torch orthogonalises in bfloat16


def test_orthogonalised_singular_values_are_near_one():
    for shape in ((16, 40), (40, 16), (3, 16, 40)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(1))))
        assert values.min() > 0.6 and values.max() < 1.3


def test_the_schedule_warms_up_stays_and_decays_by_the_square_root():
    trainer = new_trainer(precision="bf16", mtp_depths=0)
    rates = [trainer.step([batch(0)]).lr for _ in range(SCHEDULE.steps)]
    expected = [2e-3 * s / 3 if s <= 3 else 2e-3 if s <= 8 else 1e-4 + (1 - math.sqrt((s - 8) / 4)) * 1.9e-3 for s in range(1, 13)]
    assert rates == pytest.approx(expected)


def test_it_learns():
    trainer = new_trainer()
    results = [trainer.step([batch(0)]) for _ in range(SCHEDULE.steps)]
    assert results[-1].loss < results[0].loss - 0.5
    assert results[-1].mtp_losses[0] < results[0].mtp_losses[0]


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


def test_an_unfinished_checkpoint_is_none_and_old_ones_go(tmp_path):
    trainer = new_trainer(precision="bf16", mtp_depths=0)
    (tmp_path / ".step-00000009.tmp").mkdir(parents=True)
    assert checkpoints.resume(tmp_path, trainer) is None
    for step in range(3):
        trainer.step([batch(step)])
        checkpoints.save(tmp_path, trainer)
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-00000002", "step-00000003"]


def saved(tmp_path, steps):
    trainer = new_trainer(precision="bf16", mtp_depths=0)
    for step in range(steps):
        trainer.step([batch(step)])
        checkpoints.save(tmp_path, trainer, keep=3)
    return trainer


@pytest.mark.parametrize("damage", ["truncated", "one bit", "gone", "state", "another state"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    saved(tmp_path, 2)
    newest = tmp_path / "step-00000002"
    file = newest / "trainer.json" if "state" in damage else max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "another state":
        file.write_bytes(content.replace(b'"updates": 2', b'"updates": 3'))
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + (b"" if damage != "one bit" else bytes([content[middle] ^ 1]) + content[middle + 1:]))
    notes = []
    resumed = new_trainer(precision="bf16", mtp_depths=0)
    checkpoints.resume(tmp_path, resumed, notes.append)
    assert resumed.steps_done == 1
    assert len(notes) == 1 and "step-00000002" in notes[0] and "damaged" in notes[0]
    straight = new_trainer(precision="bf16", mtp_depths=0)
    straight.step([batch(0)])
    assert resumed.step([batch(1)]) == straight.step([batch(1)])


def test_where_no_checkpoint_is_whole_nothing_is_begun_anew(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / "step-00000001" / "trainer.json").unlink()
    for _ in range(2):  # however often it is tried
        with pytest.raises(UserError, match=r"no intact checkpoint is left \(1 damaged\)"):
            checkpoints.resume(tmp_path, new_trainer(precision="bf16", mtp_depths=0))


def test_a_full_disk_is_one_line_and_costs_no_older_checkpoint(tmp_path):
    """Files of this process may not grow beyond 50 kB: the writers meet an OSError, as they do without space."""
    trainer = saved(tmp_path, 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    trainer.step([batch(2)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"checkpoint of step 3 cannot be written \(.* GB are free there\): .* from step-00000002"):
            checkpoints.save(tmp_path, trainer, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    checkpoints.save(tmp_path, trainer, keep=3)
    assert (tmp_path / "step-00000003").is_dir()


@pytest.fixture
def held(monkeypatch):
    """Writers that begin to write tensors only when this event is set."""
    event, write = threading.Event(), torch.save

    def wait_and_write(*args, **kwargs):
        assert threading.current_thread() is threading.main_thread() or event.wait(600)
        write(*args, **kwargs)

    monkeypatch.setattr(torch, "save", wait_and_write)
    yield event
    event.set()


def test_a_checkpoint_is_of_the_step_it_began_at_however_late_it_is_written(tmp_path, held):
    straight, saver = new_trainer(), Saver(tmp_path)
    for step in range(3):
        straight.step([batch(step)])
    saver.save(straight, {"rows": 12})
    expected = []
    for step in range(3, 6):
        expected.append(straight.step([batch(step)]))
        saver.poll()
    assert not list(tmp_path.glob("step-*"))
    held.set()
    saver.finish()
    resumed = new_trainer()
    assert checkpoints.resume(tmp_path, resumed) == {"rows": 12}
    assert [resumed.step([batch(step)]) for step in range(3, 6)] == expected
    for name, tensor in resumed.weights().items():
        assert torch.equal(tensor, straight.weights()[name]), name


def test_one_checkpoint_is_under_way_at_a_time(tmp_path, held):
    trainer, saver = new_trainer(precision="bf16", mtp_depths=0), Saver(tmp_path)
    saver.save(trainer)
    trainer.step([batch(0)])
    threading.Timer(1.0, held.set).start()
    saver.save(trainer)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["step-00000000"]
    saver.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000000", "step-00000001"]


def test_weights_saved_while_a_checkpoint_is_being_written_leave_both_whole(tmp_path):
    trainer, saver = new_trainer(precision="bf16", mtp_depths=0), Saver(tmp_path / "checkpoints")
    trainer.step([batch(0)])
    saver.save(trainer)
    saver._writing.thread.join()  # written, and not yet asked what was
    checkpoints.save_weights(tmp_path / "weights", trainer.module)
    saver.finish()
    resumed = new_trainer(precision="bf16", mtp_depths=0)
    assert checkpoints.resume(tmp_path / "checkpoints", resumed) == {}
    checkpoints.load_weights(tmp_path / "weights", resumed.module)
    for name, tensor in resumed.weights().items():
        assert torch.equal(tensor, trainer.weights()[name]), name


def test_a_disk_that_fills_up_ends_the_training_at_a_step_after_it(tmp_path):
    trainer, limits = new_trainer(precision="bf16", mtp_depths=0), resource.getrlimit(resource.RLIMIT_FSIZE)

    def step():
        result = trainer.step([batch(trainer.steps_done)])
        if trainer.steps_done == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        return result

    try:
        with pytest.raises(UserError, match=r"checkpoint of step 4 cannot be written .* from step-00000002"):
            loop.run(trainer, step, name="pretrain", work=tmp_path, checkpoint_every=2, log=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert trainer.steps_done <= 6
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_checkpoint_of_another_order_of_rows_is_refused(tmp_path):
    """As of another blend or batch. A stage's work has a directory of its own then; whoever trains in one of his own has not."""
    rows = {"phase1 from step 0": 4}

    def go(rows, until):
        trainer = new_trainer(precision="bf16", mtp_depths=0)
        loop.run(trainer, lambda: trainer.step([batch(trainer.steps_done)]), name="pretrain", work=tmp_path, checkpoint_every=2, log=None,
                 until=until, extra=lambda: {"rows": {name: count * trainer.steps_done for name, count in rows.items()}})
        return trainer.steps_done

    assert go(rows, 2) == 2
    with pytest.raises(UserError, match=r"step 2 was made with other data .*phase1 from step 0': 8.* now .*phase2 from step 0': 16"):
        go({"phase2 from step 0": 8}, 4)
    assert go(rows, 4) == 4


def broken(logits, batch):
    return logits.sum() * math.nan, batch.loss_mask.sum(), {}


def overflowing(logits, batch):
    """A finite loss, 0, whose gradient is infinite."""
    return (logits - logits.detach()).square().sum().sqrt(), batch.loss_mask.sum(), {}


@pytest.mark.parametrize("loss", [broken, overflowing])
def test_a_skipped_step_moves_nothing(loss):
    trainer = new_trainer(precision="bf16", mtp_depths=0, expert_bias_rate=1e-3)
    trainer.step([batch(0)])
    before = {name: tensor.clone() for name, tensor in trainer.weights().items()}
    moments = copy.deepcopy(trainer.moments())
    result = trainer.step([batch(1)], loss)
    assert result.skipped and trainer.steps_done == 2
    assert math.isfinite(result.loss) == (loss is overflowing) and not math.isfinite(result.grad_norm)
    biases = [tensor for name, tensor in before.items() if "e_score_correction_bias" in name]
    assert biases and all(bias.any() for bias in biases)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.weights().items())
    assert all(torch.equal(tensor, moments[name][key]) for name, own in trainer.moments().items() for key, tensor in own.items())
    assert not trainer.step([batch(2)]).skipped


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path):
    trainer = new_trainer(precision="bf16", mtp_depths=0)
    for step in range(3):
        trainer.step([batch(step)])
    losses = iter([None, broken, broken, None, broken, broken, broken])
    with pytest.raises(UserError, match=r"loss nan .* at step 10, after 2 steps in a row"):
        loop.run(trainer, lambda: trainer.step([batch(3)], next(losses)), name="pretrain", work=tmp_path, checkpoint_every=100, log=None,
                 max_skipped=2)


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
    if rank == 0:
        print("RESULT", json.dumps([[r.loss, r.grad_norm, r.tokens] for r in results]))
main()
"""


def test_two_processes_equal_one():
    def run(ranks):
        import json

        done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--no-python",
                               sys.executable, "-c", RANK], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.split("RESULT")[1])

    for one, two in zip(run(1), run(2)):
        assert two == pytest.approx(one, rel=1e-5)
