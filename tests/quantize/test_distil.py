"""Distillation: what learns, what is measured and exported, and that only a better student is kept."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import NemotronHForCausalLM

from components.quantize import distil, modelopt_cpu
from components.quantize.answers import solved
from components.quantize.calibrate import calibration_windows, unseen_conversations
from components.quantize.divergence import divergence_by_window, divergence_from, kl_divergence, log_probabilities
from components.quantize.formats import recipe
from components.quantize.mixture import mixture
from components.quantize.source import load_model
from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog
from stagecraft.data.chat import encode_demonstration
from stagecraft.data.tasks import draw_splits, read_rows, write_rows
from stagecraft.data.tokenizer import load_tokenizer
from tests.quantize.conftest import PARAMS, run
from tests.quantize.reference import dequantised, reference_model

LEARNING = replace(PARAMS, distil=replace(PARAMS.distil, steps=20))


@dataclass
class Distilled:
    root: Path
    metrics: dict


def prepare(quantised, root: Path) -> Path:
    """The inputs of the session's run, with RL prompts and two rollouts of most of them."""
    for name in ("corpus", "aligned"):
        shutil.copytree(quantised.root / name, root / name)
    rows = draw_splits({"sft": 12, "rl": 410, "heldout": 12}, {"sort": 0.0, "arithmetic": 0.0}, 1)["rl"]
    write_rows(root / "corpus" / "tasks" / "rl.jsonl", rows)
    rollouts = [{"id": row["id"], "completion": text, "finished": finished} for row in rows[:400]
                for text, finished in (("<think>QQ QQ</think>QQ", True), ("<think>QQ QQ QQ", False))]
    (root / "aligned" / "rollouts.jsonl").write_text("".join(json.dumps(rollout) + "\n" for rollout in rollouts))
    return root


@pytest.fixture(scope="module")
def distilled(quantised, tmp_path_factory) -> Distilled:
    root = prepare(quantised, tmp_path_factory.mktemp("distil"))
    return Distilled(root, run(root, LEARNING))


@pytest.fixture
def inputs(quantised, tmp_path):
    return prepare(quantised, tmp_path)


def test_student_comes_closer_and_is_kept(quantised, distilled):
    figures = distilled.metrics
    assert figures["distil_kept"] == 1
    assert figures["distil_kl_after"] < figures["distil_kl_before"]
    assert figures["distil_kl_gain"] == pytest.approx(figures["distil_kl_before"] - figures["distil_kl_after"])
    assert figures["distil_kl_gain"] > 1.8 * figures["distil_kl_gain_stderr"] > 0
    assert figures["nvfp4_kl"] < quantised.metrics["nvfp4_kl"]  # on windows of its own, text among them
    assert figures["fp8_kl"] == quantised.metrics["fp8_kl"]
    assert (distilled.root / "plots" / "distillation.svg").stat().st_size > 1000


def test_exported_is_what_was_measured(quantised, distilled):
    """New weights have new scales: the files, read by the definition of the formats, diverge as the model in memory did."""
    source = NemotronHForCausalLM.from_pretrained(quantised.source, dtype=torch.float32).eval()
    reference = log_probabilities(source, quantised.heldout, 8)
    exported = log_probabilities(reference_model(distilled.root / "nvfp4", activations=True), quantised.heldout, 8)
    assert kl_divergence(reference, exported) == pytest.approx(distilled.metrics["nvfp4_kl"], rel=0.05)


def test_router_embedding_head_and_mtp_stay(quantised, distilled):
    before, _ = dequantised(quantised.path("nvfp4"))
    after, _ = dequantised(distilled.root / "nvfp4")
    fixed = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.startswith(("mtp.", "backbone.embeddings", "lm_head")) or ".mixer.gate." in name}
    assert frozen <= fixed
    moved = {name for name in before if name.endswith((".in_proj.weight", ".q_proj.weight", ".experts.3.up_proj.weight"))} - frozen
    assert moved and not moved & fixed


def test_same_seed_same_files(distilled, inputs):
    assert run(inputs, LEARNING) == distilled.metrics
    assert (inputs / "nvfp4" / "model.safetensors").read_bytes() == (distilled.root / "nvfp4" / "model.safetensors").read_bytes()


def test_student_that_is_not_better_is_discarded(quantised, inputs):
    figures = run(inputs, replace(LEARNING, distil=replace(LEARNING.distil, steps=2, lr=1.0)))
    assert figures["distil_kept"] == 0
    assert figures["distil_kl_after"] > figures["distil_kl_before"]
    assert figures["nvfp4_kl"] == quantised.metrics["nvfp4_kl"]
    for path in quantised.path("nvfp4").iterdir():
        assert path.read_bytes() == (inputs / "nvfp4" / path.name).read_bytes(), path.name


def test_student_that_went_to_pieces_is_discarded(quantised, inputs):
    """Weights of this size overflow; calibrating them is an error of ModelOpt's."""
    figures = run(inputs, replace(LEARNING, distil=replace(LEARNING.distil, steps=3, lr=1e10)))
    assert figures["distil_kept"] == 0
    assert figures["distil_kl_before"] > 0 and "distil_kl_after" not in figures
    assert figures["nvfp4_kl"] == quantised.metrics["nvfp4_kl"]
    assert (inputs / "nvfp4" / "model.safetensors").read_bytes() == (quantised.path("nvfp4") / "model.safetensors").read_bytes()
    assert (inputs / "plots" / "distillation.svg").exists()


def test_steps_without_a_finite_gradient_change_nothing(inputs, tmp_path):
    teacher, student = load_model(inputs / "aligned"), load_model(inputs / "aligned")
    with torch.no_grad():
        teacher.lm_head.weight[0, 0] = torch.nan
    windows, _ = calibration_windows(inputs / "corpus", PARAMS.calibration, 2048)
    log = RunLog("quantize", tmp_path, tmp_path)
    distil.learn(teacher, student, windows[:8], replace(PARAMS.distil, steps=2, batch=4), log)
    original = dict(load_model(inputs / "aligned").named_parameters())
    assert all(torch.equal(value, original[name]) for name, value in student.named_parameters())
    assert log.curve("distil") == []


def test_a_run_that_was_killed_behind_the_export_draws_its_curve(distilled, tmp_path):
    """The runner empties the plots; the checkpoints in the work directory are not made again."""
    root = tmp_path / "again"
    shutil.copytree(distilled.root, root)
    shutil.rmtree(root / "plots")
    assert run(root, LEARNING) == distilled.metrics
    assert (root / "plots" / "distillation.svg").read_bytes() == (distilled.root / "plots" / "distillation.svg").read_bytes()


@given(st.integers(2, 200), st.floats(-0.3, 0.3), st.sampled_from([0.5, 0.9, 0.95, 0.99]), st.integers(0, 2**31))
def test_a_fall_within_chance_is_not_enough(windows, shift, confidence, seed):
    before, noise = np.random.default_rng(seed).standard_normal((2, windows))
    after = before + 0.5 * noise - shift
    expected = ttest_rel(before, after, alternative="greater").pvalue
    assume(abs(expected - (1 - confidence)) > 1e-9)
    assert distil.fell(torch.from_numpy(before), torch.from_numpy(after), confidence) == (expected < 1 - confidence)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_reach_all_weights_but_the_frozen(inputs, dtype, tmp_path):
    teacher, student = (load_model(inputs / "aligned").to(dtype) for _ in range(2))
    windows, _ = calibration_windows(inputs / "corpus", PARAMS.calibration, 2048)
    with modelopt_cpu.quiet(tmp_path / "log"):
        modelopt_cpu.quantize(student, recipe("nvfp4", "max"), [windows])
        scales = {name: value.clone() for name, value in student.named_buffers()}
        log = RunLog("quantize", tmp_path, tmp_path)
        distil.learn(teacher, student, windows, replace(PARAMS.distil, steps=2, batch=8, lr=2e-2), log)
    original = dict(load_model(inputs / "aligned").to(dtype).named_parameters())
    assert all(torch.equal(value, original[name]) for name, value in teacher.named_parameters())
    for name, value in student.named_parameters():
        is_frozen = name in ("model.embeddings.weight", "lm_head.weight") or name.endswith(".gate.weight")
        assert torch.equal(value, original[name]) == is_frozen, name
        assert value.isfinite().all()
    assert all(torch.equal(value, scales[name]) for name, value in student.named_buffers())
    assert [row["step"] for row in log.curve("distil")] == [1, 2]


def test_loss_is_the_divergence_of_the_first_batch(inputs, tmp_path):
    teacher, student = load_model(inputs / "aligned"), load_model(inputs / "aligned")
    with torch.no_grad():
        for name, value in student.named_parameters():
            value.mul_(1.01 if ".mixer." in name else 1.0)
    windows, _ = calibration_windows(inputs / "corpus", PARAMS.calibration, 2048)
    expected = divergence_by_window(teacher, student, windows[:8], 3)
    assert expected.mean() == pytest.approx(kl_divergence(*(log_probabilities(model, windows[:8], 8) for model in (teacher, student))))
    log = RunLog("quantize", tmp_path, tmp_path)
    distil.learn(teacher, student, windows[:8], replace(PARAMS.distil, steps=1), log)
    assert log.curve("distil")[0]["kl"] == pytest.approx(float(expected.mean()), rel=1e-3)


class Bigram(torch.nn.Module):
    """Predicts a token from the one before."""

    def __init__(self, vocabulary):
        super().__init__()
        self.table = torch.nn.Embedding(vocabulary, vocabulary)

    def forward(self, rows, use_cache):
        return SimpleNamespace(logits=self.table(rows))


class Sizes(TorchDispatchMode):
    """Elements of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.seen += [each.numel() for each in (made if isinstance(made, list | tuple) else [made])
                      if isinstance(each, torch.Tensor) and each._base is None]
        return made


def test_an_export_is_measured_a_batch_at_a_time():
    """All its predictions at once and what the divergence makes of them were five times 137 GB at 120B."""
    teacher, student, windows = Bigram(50), Bigram(50), torch.randint(50, (7, 12))
    reference = log_probabilities(teacher, windows, 3)
    with Sizes() as sizes:
        found = divergence_from(reference, student, windows, 3)
    assert found == pytest.approx(kl_divergence(reference, log_probabilities(student, windows, 3)))
    assert max(sizes.seen) == 3 * 12 * 50


def test_windows_in_parts_teach_what_they_teach_at_once(inputs, tmp_path):
    windows, _ = calibration_windows(inputs / "corpus", PARAMS.calibration, 2048)
    found = []
    for micro in (8, 3):
        teacher, student = load_model(inputs / "aligned"), load_model(inputs / "aligned")
        with torch.no_grad():
            for name, value in student.named_parameters():
                value.mul_(1.01 if ".mixer." in name else 1.0)
        log = RunLog("quantize", tmp_path, tmp_path)
        distil.learn(teacher, student, windows[:8], replace(PARAMS.distil, steps=1, batch=8, micro_batch=micro, lr=1e-3), log)
        (row,) = log.curve("distil")
        found.append((row["kl"], row["gradient_norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_windows_are_60_to_40_and_apart(inputs):
    params = replace(PARAMS.distil, steps=5, batch=8)
    notes = []
    data = mixture(inputs / "corpus", inputs / "aligned", params, PARAMS.calibration, notes.append)
    assert not notes
    assert data.training.shape == (40, 64)
    assert data.heldout.shape == (PARAMS.distil.heldout, 64)
    texts = [[data.tokenizer.decode(row) for row in part] for part in (data.training, data.heldout)]
    for part in texts:
        assert sum("QQ" in text for text in part) == round(0.4 * len(part))
    rollouts = (inputs / "aligned" / "rollouts.jsonl").read_text()
    assert not any(row["id"] in rollouts for row in data.prompts)
    seen, judged = (set(map(tuple, part.tolist())) for part in (data.training, data.heldout))
    assert not seen & judged
    spoken = unseen_conversations(inputs / "corpus", PARAMS.calibration)
    calibration, heldout = calibration_windows(inputs / "corpus", PARAMS.calibration, 2048)
    used = torch.cat([calibration, heldout]).flatten().numpy()
    first = next(spoken)[:30]
    assert not (np.lib.stride_tricks.sliding_window_view(used, 30) == first).all(1).any()


def test_scarce_lessons_come_again_but_what_is_judged_on_does_not(inputs):
    params, notes = replace(PARAMS.distil, steps=400, batch=8), []
    data = mixture(inputs / "corpus", inputs / "aligned", params, PARAMS.calibration, notes.append)
    assert data.training.shape == (3200, 64)
    assert len(notes) == 2
    assert all(re.match(rf"distillation: {name}\.jsonl has \d+ tokens to learn from where {wanted} are wanted", note)
               for note, name, wanted in zip(notes, ("sft", "rollouts"), (1920 * 64, 1280 * 64)))
    few = mixture(inputs / "corpus", inputs / "aligned", replace(params, steps=5), PARAMS.calibration, notes.append)
    assert torch.equal(data.heldout.sort(0).values, few.heldout.sort(0).values)
    seen, judged = (set(map(tuple, part.tolist())) for part in (data.training, data.heldout))
    assert not seen & judged
    with pytest.raises(UserError, match=r"tokens where \d+ are wanted - lower quantize\.distil"):
        mixture(inputs / "corpus", inputs / "aligned", replace(params, heldout=4000), PARAMS.calibration, notes.append)


def test_right_answers_are_counted_whatever_the_padding(inputs):
    """A model that has learned two demonstrations by heart, of unlike lengths, asked together with two that it has not."""
    tokenizer = load_tokenizer(inputs / "corpus" / "tokenizer")
    rows = read_rows(inputs / "corpus" / "tasks" / "sft.jsonl")
    known = [next(row for row in rows if row["family"] == family and "demonstration" in row) for family in ("sort", "arithmetic")]
    unknown = [row for row in rows if row not in known][:2]
    model = load_model(inputs / "aligned")
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.0)
    lessons = [tuple(torch.tensor([part]) for part in encode_demonstration(tokenizer, row)) for row in known]
    assert lessons[0][0].shape != lessons[1][0].shape
    for _ in range(25):
        for ids, mask in lessons:
            labels = torch.where(mask == 1, ids, -100)
            model(ids, labels=labels, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert solved(model, tokenizer, [*known, *unknown], 64).tolist() == [1, 1, 0, 0]
    assert solved(model, tokenizer, known, 2).tolist() == [0, 0]  # cut off


def test_no_rollouts(quantised, inputs):
    path = inputs / "aligned" / "rollouts.jsonl"
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n{}\n")
    with pytest.raises(UserError, match=r"rollouts\.jsonl:2: not a rollout"):
        run(inputs, LEARNING)
    path.write_text(json.dumps({"id": "nobody", "completion": "", "finished": True}) + "\n")
    with pytest.raises(UserError, match=r"rollout of 'nobody', which is no RL prompt"):
        run(inputs, LEARNING)
    path.write_text("\n".join(lines[:20]))
    with pytest.raises(UserError, match=r"tokens where \d+ are wanted - lower quantize\.distil"):
        run(inputs, LEARNING)
    path.unlink()
    with pytest.raises(UserError, match="no rollouts to distil on - give the artifact of the rl stage") as caught:
        run(inputs, LEARNING)
    assert "\n" not in str(caught.value)


def test_too_few_prompts(inputs):
    with pytest.raises(UserError, match="10 prompts without a rollout where 11 are wanted"):
        run(inputs, replace(LEARNING, distil=replace(LEARNING.distil, prompts=11)))
