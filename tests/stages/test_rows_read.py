"""What the ranks of pre-training do with rows and weights: each step reads the next rows of its phase, the merged weights go on."""

import sys
from dataclasses import replace

import pytest
import torch

from components.pretrain import rows as reading
from components.pretrain.params import Params
from components.pretrain.train import train
from stagecraft.checkpoint.convert import to_hf
from stagecraft.contract.params import load
from stagecraft.contract.runlog import RunLog
from stagecraft.engine.batch import Batch
from stagecraft.engine.merging import Merger
from tests.architectures import tiny
from tests.checkpoints import tiny_tokenizer
from tests.processes import torchrun
from tests.stages.commands import ROOT


class Rows:
    """Stands for a blend: a row is its number."""

    def __init__(self, blend, samples, length, seed):
        self.blend, self.samples, self.length, self.seed, self.read = blend, samples, length, seed, []

    def batch(self, indices):
        assert indices.start >= 0 and indices.stop <= self.samples
        self.read.append(list(indices))
        tokens = torch.tensor([[(index + at) % 60 for at in range(self.length + 1)] for index in indices])
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.ones(len(indices), self.length))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """(parameters of six steps and four of long context, the blends that training opens, how to train)."""
    opened = []

    def open_blend(blend, *, samples, sequence_length, seed, **_):
        opened.append(Rows(blend, samples, sequence_length, seed))
        return opened[-1]

    monkeypatch.setattr(reading, "read_blend", lambda corpus, blend: blend)
    monkeypatch.setattr(reading, "open_blend", open_blend)
    monkeypatch.setattr(reading, "batch_of", lambda rows, indices: rows.batch(indices))
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    params = load(Params, "pretrain", ROOT / "params.yaml")
    params = replace(
        params, architecture=tiny(vocab_size=2048, num_nextn_predict_layers=0), precision="bf16", processes=1, mtp_depths=0, steps=6,
        warmup_steps=1, decay_steps=2,
        blend="phase1", decay_blend="phase2", sequence_length=16, global_batch=4, micro_batch=2, heldout_rows=3, checkpoint_every=100,
        batch_ramp=replace(params.batch_ramp, steps=2, start=2, increment=2), merge=replace(params.merge, every=0), seed=5,
        heldout_every=0, heldout_look_rows=1,
        long_context=replace(params.long_context, steps=4, alternating_steps=2, sequence_length=64, short_length=16, global_batch=2,
                             micro_batch=1, blend="long"))
    return params, opened, lambda params, log=None, work="work": train(params, tmp_path, tmp_path / work, log)


def test_every_step_reads_the_next_rows_of_its_phase(small):
    """A batch that grows, in microbatches; the decay's blend; long rows and, at every second step, four times as many short ones."""
    params, opened, train = small
    result = train(params)
    first, decay, long, short, heldout = opened
    assert [(rows.blend, rows.samples, rows.length, rows.seed) for rows in opened[:4]] == [
        ("phase1", 12, 16, 5), ("phase2", 8, 16, 6), ("long", 6, 64, 7), ("phase2", 8, 16, 8)]
    assert first.read == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]  # two steps of two rows, two of four
    assert decay.read == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert long.read == [[0], [1], [2], [3], [4], [5]]
    assert short.read == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert heldout.blend == "heldout" and heldout.read == [[0, 1], [2]] * 2  # after the decay, and at the end
    assert 0 < result.heldout_loss < 10


def test_a_look_at_held_out_text_changes_nothing_that_is_trained(small, tmp_path):
    """Through all phases, and with what a forward pass of training draws or counts: rounding, MTP, the experts' balance."""
    params, _, train = small
    params = replace(params, architecture=tiny(vocab_size=2048), precision="nvfp4", mtp_depths=2)
    without = train(params)
    (tmp_path / "looked").mkdir()
    log = RunLog("pretrain", tmp_path / "plots", tmp_path / "looked")
    looked = train(replace(params, heldout_every=3, heldout_look_rows=2), log, "looked")
    assert looked.heldout_loss == without.heldout_loss
    assert all(torch.equal(tensor, without.weights[name]) for name, tensor in looked.weights.items())
    points = log.curve("heldout")
    assert [point["step"] for point in points] == [3, 6, 9] and len({point["loss"] for point in points}) == 3
    assert not any("merged" in point for point in points)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_weights_are_those_that_the_long_context_goes_on_from(small, monkeypatch, dtype):
    """Its steps are too small to move a weight: of bfloat16 ones the optimizer's float32 values are the merged ones too."""
    params, _, train = small
    seen, inner, losses = [], Merger.goes_on, iter(range(100, 0, -1))

    def goes_on(self, *args, **options):
        seen.append(canonical(self.module))
        loss = inner(self, *args, **options)
        seen.append(canonical(self.module))
        return loss

    def canonical(module):
        return {name: tensor.clone() for name, tensor in to_hf(params.architecture, module.state_dict(), mtp=False)}

    monkeypatch.setattr(Merger, "goes_on", goes_on)
    monkeypatch.setattr(reading.Heldout, "loss", lambda *_: next(losses))  # what comes later is better
    result = train(replace(params, dtype=dtype, weight_decay=0.0, expert_bias_rate=0.0, merge=replace(params.merge, every=2, window=2),
                           long_context=replace(params.long_context, lr=1e-30)))
    last, merged = seen
    assert result.weights.keys() == merged.keys()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in result.weights.items())
    assert not any(torch.equal(last[name], tensor) for name, tensor in merged.items() if tensor.dim() == 2 and "conv1d" not in name)


HELD_OUT = """
import sys
from types import SimpleNamespace
import stagecraft.megatron_cpu
import torch.distributed as dist
from components.pretrain import rows
from stagecraft.engine import parallel
from stagecraft.engine.layout import Layout
from tests.stages.test_rows_read import Rows
from tests.engine.test_trainer import new_trainer
parallel.initialize(7, Layout(tensor=1, pipeline=1, context=1, expert=int(sys.argv[1])))
files = SimpleNamespace(open=lambda blend, *, rows, length, seed: Rows(blend, rows, length, seed))
rows.batch_of = lambda held, indices: held.batch(indices)
heldout = rows.Heldout(files, SimpleNamespace(heldout_rows=9, micro_batch=2, sequence_length=32, seed=0))
trainer = new_trainer(precision="bf16")
losses = [heldout.loss(trainer, count) for count in (9, 7, 1)]
if dist.get_rank() == 0:
    print("LOSSES", *losses, "ROWS", sum(map(len, heldout._rows.read)))
"""


def test_held_out_rows_are_shared_by_the_ranks():
    def run(ranks, expert):
        said = torchrun(ranks, "--no-python", sys.executable, "-c", HELD_OUT, str(expert)).split("LOSSES")[1].split()
        return [float(each) for each in said[:3]], int(said[4])

    alone, rows = run(1, 1)
    assert rows == 9 + 7 + 1
    for expert in (1, 2):
        losses, read = run(2, expert)
        assert losses == pytest.approx(alone, rel=1e-6)
        assert read <= 6 + 4 + 1  # of the first rank: three batches of five, two of four, the one there is
