"""Packed sequences give the losses and the gradients they give alone: nothing of one reaches another."""

import json
from dataclasses import replace
from itertools import accumulate
from random import Random

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from megatron.core.packed_seq_params import PackedSeqParams
from safetensors.torch import save_file

from stagecraft.data.packing import pack_bins, pack_stream, packs_of_passes
from stagecraft.engine import packs as packs_module
from stagecraft.engine.batch import Batch
from stagecraft.engine.packs import own_packs, packed_batch
from stagecraft.engine.trainer import Optimization, Trainer
from stagecraft.model.packing import own_places, pack
from tests.architectures import tiny
from tests.processes import torchrun

SHAPES = tiny()


def trainer_of(depths, weights=None):
    """Its steps change nothing, and no balancing looks at what is together in a microbatch."""
    return Trainer(SHAPES, Optimization(lr=1e-12, steps=1, clip=1e9), max_sequence_length=512, mtp_depths=depths, aux_loss=0.0,
                   expert_bias_rate=0.0, weights=weights)


def drawn(lengths, seed):
    """Sequences of these lengths, each with a loss on most of its tokens and at least one."""
    random = Random(seed)
    return [([random.randrange(256) for _ in range(n)], [0, *(int(random.random() < 0.8) for _ in range(n - 2)), 1]) for n in lengths]


def alone(sequence):
    """A row of its own, as nothing that knows of packing has seen it."""
    ids, mask = (torch.tensor([each]) for each in sequence)
    return Batch(ids[:, :-1], ids[:, 1:], mask[:, 1:].float())


def told(trainer, batches):
    """(losses, gradients) of a step."""
    result = trainer.step(batches)
    return [result.loss, *result.mtp_losses], {name: p.main_grad.double() for name, p in trainer.module.named_parameters()}


def assert_equal(found, expected):
    """Losses to 1e-5 of their own, and each gradient to 1e-5 of its norm."""
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert sum(gradient.norm() > 0 for gradient in expected[1].values()) > 0.8 * len(expected[1])
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@settings(max_examples=12, deadline=None, phases=[Phase.generate])
@given(st.lists(st.integers(2, 40), min_size=2, max_size=7), st.integers(1, 6), st.integers(0, 2), st.integers(0, 999))
def test_packed_equals_alone(lengths, cut, depths, seed):
    """In one pack or two, with what predicts further: neither its targets nor its attention, states or weights know of a neighbour."""
    torch.manual_seed(seed)
    trainer, sequences = trainer_of(depths), drawn([max(lengths), 4, *lengths], seed)
    packs = [packed_batch(part) for part in (sequences[:cut], sequences[cut:]) if part]
    found = told(trainer, packs)
    assert_equal(found, told(trainer, [alone(sequence) for sequence in sequences]))


@pytest.mark.slow
def test_two_ranks_of_packs_equal_one_process_alone(tmp_path):
    """Each rank has as many packs as the other, not as many sequences; lengths are drawn."""
    trainer = trainer_of(depths=2)
    save_file(trainer.weights(), tmp_path / "weights.safetensors")
    cases = [[Random(f"{case}/{at}").randint(2, 40) for at in range(7)] for case in range(3)]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    torchrun(2, "-m", "tests.model.packed_ranks", str(tmp_path))
    for case, lengths in enumerate(cases):
        found = torch.load(tmp_path / f"{case}.pt")
        assert_equal(found, told(trainer, [alone(sequence) for sequence in drawn(lengths, case)]))


def test_boundaries_that_a_layer_would_not_see_are_refused():
    """megatron-core's plain parameters tell its Mamba layers nothing; boundaries of another row tell them wrong."""
    trainer, batch = trainer_of(0), packed_batch(drawn([5, 6], 0))
    plain = PackedSeqParams(qkv_format="thd", cu_seqlens_q=batch.packed.cu_seqlens_q, cu_seqlens_kv=batch.packed.cu_seqlens_kv)
    with pytest.raises(TypeError, match="boundaries would be lost"):
        trainer.step([replace(batch, packed=plain)])
    for other in ([5, 7], [5, 5]):
        with pytest.raises(ValueError, match="boundaries of a row of"):
            trainer.step([replace(batch, packed=packed_batch(drawn(other, 0)).packed)])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 6))
def test_ranks_divide_a_pack_wherever_its_boundaries_are(lengths, ranks):
    """Every token lies with one rank, which knows the first token of its sequence and sees none but from there to itself."""
    if left := -sum(lengths) % (2 * ranks):
        lengths = [*lengths, left]
    whole, starts = pack(lengths), list(accumulate(lengths, initial=0))
    assert sorted(place for rank in range(ranks) for place in own_places(sum(lengths), rank, ranks).tolist()) == list(range(sum(lengths)))
    for rank in range(ranks):
        part, places = whole.part(rank, ranks), own_places(sum(lengths), rank, ranks)
        assert torch.equal(part.sequence, whole.sequence[places]) and torch.equal(part.last, whole.last[places])
        assert torch.equal(part.seq_idx, whole.seq_idx)
        seen = {token: (start, until - (end - 1 - token)) for first, end, start, until in part.stretches for token in range(first, end)}
        assert seen == {token: (starts[part.sequence[token]], place + 1) for token, place in enumerate(places.tolist())}


@given(st.integers(0, 9), st.integers(1, 5))
def test_every_pack_is_one_ranks_and_all_have_as_many(packs, ranks):
    whole, found = [[at] for at in range(packs)], []
    for rank in range(ranks):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packs_module.parallel_state, "get_data_parallel_world_size", lambda: ranks)
            patch.setattr(packs_module.parallel_state, "get_data_parallel_rank", lambda rank=rank: rank)
            found.append(own_packs(whole))
    assert {len(own) for own in found} == {max(1, -(-packs // ranks))}
    assert sorted(at for own in found for pack in own for at in pack) == list(range(packs))


def test_a_row_that_ranks_cannot_divide_is_refused():
    with pytest.raises(ValueError, match="30 tokens cannot be divided among 4 context-parallel ranks: fill it up to a multiple of 8"):
        pack([10, 20]).part(0, 4)


@given(st.lists(st.integers(1, 100), max_size=200), st.integers(100, 300))
def test_bins_hold_everything_once_and_no_two_could_be_one(lengths, capacity):
    bins = pack_bins(lengths, capacity)
    assert sorted(i for bin_ in bins for i in bin_) == list(range(len(lengths)))
    fill = sorted(sum(lengths[i] for i in bin_) for bin_ in bins)
    assert all(total <= capacity for total in fill)
    assert len(fill) < 2 or fill[0] + fill[1] > capacity


@given(st.lists(st.integers(1, 100), max_size=200), st.integers(100, 300), st.integers(1, 4), st.randoms())
def test_a_stream_is_packed_in_its_order(lengths, capacity, bins, random):
    order = list(range(len(lengths)))
    random.shuffle(order)
    groups = list(pack_stream(lengths, order, capacity, bins))
    flat = [sorted(i for bin_ in group for i in bin_) for group in groups]
    seen = 0
    for group, indices in zip(groups, flat):
        assert indices == sorted(order[seen:seen + len(indices)])
        seen += len(indices)
        assert len(group) == bins and all(sum(lengths[i] for i in bin_) <= capacity for bin_ in group)
        assert all(sum(lengths[i] for i in bin_) + lengths[order[seen]] > capacity for bin_ in group)


def test_there_are_as_many_packs_as_steps_in_passes_of_another_order_each():
    packs = packs_of_passes([10] * 12, 40, 5, "0")  # two of a pass, as the third is not closed
    assert len(packs) == 5 and all(len(pack) == 4 for pack in packs)
    assert not set(packs[0]) & set(packs[1]) and packs[:2] != packs[2:4] and packs == packs_of_passes([10] * 12, 40, 5, "0")
    few = packs_of_passes([10] * 3, 40, 4, "0")
    assert [sorted(pack) for pack in few] == [[0, 1, 2]] * 4 and len(set(map(tuple, few))) > 1
