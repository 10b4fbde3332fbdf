"""Checkpoints and the loop that makes them: whole or not at all, damage and full disks told in one line, skipped steps counted."""

import resource
import threading

import pytest
import torch

from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog
from stagecraft.engine import checkpoints, loop
from stagecraft.engine.saving import Saver
from tests.engine.test_trainer import batch, broken, new_trainer


def test_an_unfinished_checkpoint_is_none_and_old_ones_go(tmp_path):
    trainer = new_trainer(precision="bf16", mtp_depths=0)
    (tmp_path / ".step-00000009.tmp").mkdir(parents=True)
    assert checkpoints.resume(tmp_path, trainer) is None and trainer.steps_done == 0
    for step in range(3):
        trainer.step([batch(step)])
        checkpoints.save(tmp_path, trainer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def saved(tmp_path, steps):
    trainer = new_trainer(precision="bf16", mtp_depths=0)
    for step in range(steps):
        trainer.step([batch(step)])
        checkpoints.save(tmp_path, trainer, keep=3)
    return trainer


@pytest.mark.parametrize("damage", ["truncated", "one bit", "metadata", "gone", "state", "another state"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    saved(tmp_path, 2)
    newest = tmp_path / "step-00000002"
    file = newest / "trainer.json" if "state" in damage else newest / ".metadata" if damage == "metadata" else \
        max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "another state":
        file.write_bytes(content.replace(b'"updates": 2', b'"updates": 3'))
    else:
        middle, short = len(content) // 2, damage in ("truncated", "state")
        file.write_bytes(content[:middle] + (b"" if short else bytes([content[middle] ^ 1]) + content[middle + 1:]))
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002", "step-00000003"]


def test_weights_that_cannot_be_written_leave_nothing(tmp_path):
    trainer, limits = new_trainer(precision="bf16", mtp_depths=0), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"weights cannot be written: rank 0: OSError: \[Errno 27\] File too large"):
            checkpoints.save_weights(tmp_path / "weights", trainer.module)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


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


def test_copies_of_weights_remember_no_saves(tmp_path):
    trainer, saver = new_trainer(precision="bf16", mtp_depths=0), Saver(tmp_path)
    for _ in range(2):
        saver.save(trainer)
    saver.finish()
    assert saver._copies and not any(copy.requires_grad for copy in saver._copies.values())


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


def test_the_loop_says_where_it_is_and_goes_on_from_where_it_was_left(tmp_path):
    """A checkpoint at every second step, whole at the step after it, and where it is left, beside which none is kept."""
    log = RunLog("pretrain", tmp_path / "plots", tmp_path)
    log.step(7, loss=0.0)  # of a start that came further than its checkpoints
    found = tmp_path / "checkpoints"

    def go(until):
        trainer, beats, seen = new_trainer(precision="bf16", mtp_depths=0), [], []

        def step():
            result = trainer.step([batch(trainer.steps_done)])
            for writing in threading.enumerate():
                if writing.name == "checkpoint":
                    writing.join()
            return result

        loop.run(trainer, step, name="pretrain", work=tmp_path, checkpoint_every=2, log=log, until=until, keep=1,
                 beat=beats.append, between=lambda: seen.append([path.name for path in found.glob("*")]))
        return beats, seen, [path.name for path in found.iterdir()]

    assert go(5) == ([0, 1, 2, 3, 4], [[], [], ["step-00000002"], ["step-00000002"], ["step-00000004"]], ["step-00000005"])
    beats, seen, left = go(None)
    assert beats == list(range(5, 12)) and left == ["step-00000012"]
    assert seen[:3] == [["step-00000005"], ["step-00000006"], ["step-00000006"]]
    assert [row["step"] for row in log.curve()] == list(range(1, 13))
    speed = log.curve("speed")
    assert [row["tokens"] for row in speed] == [128] * 12
    assert loop.tokens_per_second(log) == pytest.approx(12 * 128 / sum(row["seconds"] for row in speed))


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


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path, held):
    """Once the checkpoint under way is whole; skipped steps are no points of the curve."""
    trainer, log = new_trainer(precision="bf16", mtp_depths=0), RunLog("pretrain", tmp_path / "plots", tmp_path)
    for step in range(3):
        trainer.step([batch(step)])
    losses = iter([None, broken, broken, None, broken, broken, broken])
    threading.Timer(3.0, held.set).start()
    with pytest.raises(UserError, match=r"loss nan .* at step 10, after 2 steps in a row"):
        loop.run(trainer, lambda: trainer.step([batch(3)], next(losses)), name="pretrain", work=tmp_path, checkpoint_every=9, log=log,
                 max_skipped=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000009"]
    assert [row["step"] for row in log.curve()] == [4, 7]
