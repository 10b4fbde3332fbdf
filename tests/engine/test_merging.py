"""Merging: the coefficients against a decayed path, the module's weights before and after, and a window that a kill cannot confuse."""

import math
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecraft.contract.errors import UserError
from stagecraft.engine.merge_params import Merging
from stagecraft.engine.merging import Merger, coefficients
from stagecraft.model.layers import RMSNorm
from tests.engine.test_trainer import batch, new_trainer


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_a_merge_is_the_path_with_decayed_steps(updates):
    """A walk with the updates scaled by 1 - sqrt(i / n) ends where the mean of the unscaled walk's points is."""
    points = [sum(updates[:end]) for end in range(len(updates) + 1)]
    count = len(points)
    decayed = sum(update * (1 - math.sqrt(at / count)) for at, update in enumerate(updates, 1))
    merged = sum(c * point for c, point in zip(coefficients(count), points))
    assert merged == pytest.approx(decayed, abs=1e-9)


def weights_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.module.state_dict().items() if torch.is_tensor(tensor)}


def walk(tmp_path, window=2, use="better"):
    """Four steps with all weights kept by us, too."""
    trainer, points = new_trainer(precision="bf16", mtp_depths=0), []
    merger = Merger(Merging(every=2, window=window, use=use), tmp_path, trainer.module, reach=2)
    losses = []
    for step in range(1, 5):
        trainer.step([batch(step)])
        points.append(weights_of(trainer))
        losses.append(merger.look(step, lambda: trainer.loss(batch(9))[0]))
    return trainer, merger, points, losses


def test_the_window_is_merged_and_the_module_gets_its_weights_back(tmp_path):
    trainer, merger, points, losses = walk(tmp_path)
    assert losses[:3] == [None] * 3  # the second is the window's, which is not full yet
    assert losses[3] is not None and losses[3] != trainer.loss(batch(9))[0]
    window = [tmp_path / "step-00000002", tmp_path / "step-00000004"]
    with merger._with(window):
        for name, tensor in weights_of(trainer).items():
            expected = math.sqrt(0.5) * points[1][name].double() + (1 - math.sqrt(0.5)) * points[3][name].double()
            torch.testing.assert_close(tensor.double(), expected, atol=1e-6, rtol=1e-6)
        assert losses[3] == trainer.loss(batch(9))[0]
    assert all(torch.equal(tensor, points[3][name]) for name, tensor in weights_of(trainer).items())


def test_what_transformer_engines_layers_add_to_a_state_is_not_merged(tmp_path, monkeypatch):
    """It is empty after a forward pass that quantised nothing, as that of held-out rows does, and not after one of training."""
    monkeypatch.setattr(RMSNorm, "get_extra_state", lambda self: torch.zeros(8 * self.training, dtype=torch.uint8), raising=False)
    monkeypatch.setattr(RMSNorm, "set_extra_state", lambda self, state: None, raising=False)
    trainer, merger, _, losses = walk(tmp_path)
    assert any(name.endswith("_extra_state") for name in trainer.module.state_dict())
    assert losses[3] is not None
    assert merger.goes_on(4, lambda: trainer.loss(batch(9))[0], last=math.inf) == losses[3]


@pytest.mark.parametrize("use, loss, merged", [("better", 1.0, True), ("better", 3.0, False), ("never", 1.0, False)])
def test_the_merged_weights_go_on_only_if_they_are_better_and_asked_for(tmp_path, use, loss, merged):
    trainer, merger, points, _ = walk(tmp_path, use=use)
    assert merger.goes_on(5, lambda: loss, last=2.0) == loss
    same = all(torch.equal(tensor, points[3][name]) for name, tensor in weights_of(trainer).items())
    assert merger.merged is merged and same is not merged


def test_after_a_kill_the_window_is_that_of_the_files(tmp_path):
    """Also where no step of the window is left to do."""
    trainer, merger, points, _ = walk(tmp_path)
    again = Merger(merger.merging, tmp_path, trainer.module, reach=2)
    merger.goes_on(5, lambda: 1.0, last=2.0)
    expected = weights_of(trainer)
    trainer.module.load_state_dict(points[3], strict=False)  # as the checkpoint has them that the run goes on from
    assert not all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(trainer).items())
    assert again.goes_on(5, lambda: 1.0, last=2.0) == 1.0 and again.merged
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(trainer).items())


def test_a_step_that_is_done_again_replaces_its_weights(tmp_path):
    """As after a kill between the window's weights and the checkpoint."""
    trainer, merger, points, losses = walk(tmp_path)
    trainer.module.load_state_dict(points[0], strict=False)
    assert merger.look(4, lambda: trainer.loss(batch(9))[0]) != losses[3]
    trainer.module.load_state_dict(points[3], strict=False)
    assert merger.look(4, lambda: trainer.loss(batch(9))[0]) == losses[3]


def test_a_mean_of_bfloat16_weights_is_rounded_once(tmp_path):
    trainer = new_trainer(precision="bf16", mtp_depths=0, dtype=torch.bfloat16)
    merger, points = Merger(Merging(every=1, window=4, use="better"), tmp_path, trainer.module, reach=0), []
    for step in range(1, 5):
        trainer.step([batch(step)])
        points.append(weights_of(trainer))
        merger.look(step, lambda: 0.0)
    assert merger.goes_on(4, lambda: 0.0, last=1.0) == 0.0
    for name, tensor in weights_of(trainer).items():
        exact = sum(c * point[name].double() for c, point in zip(coefficients(4), points))
        assert ((tensor.double() - exact).abs() <= 2**-8 * exact.abs() * 1.01 + 1e-12).all(), name


def test_missing_weights_of_a_window_that_was_full_are_told_of(tmp_path):
    _, merger, *_ = walk(tmp_path)
    said = []
    merger.note = said.append
    assert merger.goes_on(5, lambda: 1.0, last=2.0) and not said
    shutil.rmtree(tmp_path / "step-00000002")
    assert merger.goes_on(5, lambda: 1.0, last=2.0) is None
    assert said == [f"no merged weights at step 5: those of step 2 are gone from {tmp_path}"]
    merger.after = 2  # as after a warm-up of two steps: step 2 is not looked at, and no window is full yet
    assert merger.goes_on(5, lambda: 1.0, last=2.0) is None and len(said) == 1


@settings(max_examples=50, deadline=None)
@given(every=st.integers(1, 5), window=st.integers(1, 4), reach=st.integers(0, 12), steps=st.integers(1, 40))
def test_a_run_that_goes_back_finds_its_windows_full(every, window, reach, steps):
    with TemporaryDirectory() as directory:
        merger = Merger(Merging(every=every, window=window, use="better"), Path(directory), None, reach=reach)
        for step in range(every, steps + 1, every):
            merger._path(step).mkdir()
            merger._discard(step)
        for step in range(every, steps + 1, every):
            if step > steps - reach or step == steps - steps % every:
                assert bool(merger._window(step)) == (step >= window * every)
        assert len(list(Path(directory).iterdir())) <= window + reach // every


def test_without_a_full_window_nothing_is_merged(tmp_path):
    _, merger, *_ = walk(tmp_path, window=3)
    assert merger.goes_on(4, lambda: 0.0, last=2.0) is None and not merger.merged


@pytest.mark.parametrize("damage", ["short", "another bit"])
def test_damaged_weights_of_the_window_are_one_line(tmp_path, damage):
    _, merger, *_ = walk(tmp_path)
    file = max((tmp_path / "step-00000002").glob("*.distcp"), key=lambda path: path.stat().st_size)
    content, middle = file.read_bytes(), file.stat().st_size // 2
    file.write_bytes(content[:middle] + (b"" if damage == "short" else bytes([content[middle] ^ 1]) + content[middle + 1:]))
    with pytest.raises(UserError, match=r"step-00000002: damaged weights: .* is not what was written"):
        merger.goes_on(4, lambda: 0.5, 1.0)
