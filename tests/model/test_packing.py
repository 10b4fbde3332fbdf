"""Packed sequences give the losses and the gradients they give alone: nothing of one reaches another."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecraft.data.packing import pack_bins, pack_stream
from stagecraft.engine.packs import packed_batch
from stagecraft.engine.trainer import Optimization, Trainer
from tests.architectures import tiny


def losses_and_gradients(trainer, batches):
    trainer.model.zero_grad_buffer()
    losses = []
    for batch in batches:
        out = trainer.module(batch.tokens, torch.zeros_like(batch.tokens), None, labels=batch.labels, packed_seq_params=batch.packed)
        (out * batch.loss_mask).sum().backward()
        losses.append((out * batch.loss_mask).detach().flatten())
    return torch.cat(losses), {name: p.main_grad.clone() for name, p in trainer.module.named_parameters()}


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=2, max_size=7), st.integers(0, 999))
def test_packed_equals_alone(lengths, seed):
    torch.manual_seed(seed)
    trainer = Trainer(tiny(), Optimization(lr=1e-3, steps=1), max_sequence_length=512, aux_loss=0.0)
    sequences = [(torch.randint(0, 256, (n,)).tolist(), [0] + [1] * (n - 1)) for n in lengths]
    together = losses_and_gradients(trainer, [packed_batch(sequences)])
    alone = losses_and_gradients(trainer, [packed_batch([sequence]) for sequence in sequences])
    torch.testing.assert_close(together[0], alone[0], atol=1e-5, rtol=1e-5)
    assert sum(gradient.norm() > 0 for gradient in together[1].values()) > 0.8 * len(together[1])
    for name, packed in together[1].items():
        torch.testing.assert_close(packed, alone[1][name], atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_mtp_targets_stop_at_the_boundary():
    """Two tokens before the boundary, depths one and two would predict into the neighbour: their losses do not depend on it."""
    torch.manual_seed(0)
    trainer = Trainer(tiny(), Optimization(lr=1e-3, steps=1), max_sequence_length=512, mtp_depths=2, aux_loss=0.0)
    first, second, other = ((torch.randint(0, 256, (20,)).tolist(), [1] * 20) for _ in range(3))

    def gradient_of_first(neighbour):
        batch = packed_batch([first, neighbour])
        batch.loss_mask[:, 19:] = 0
        trainer.module.train()
        trainer.model.zero_grad_buffer()
        out = trainer.module(batch.tokens, torch.zeros_like(batch.tokens), None, labels=batch.labels, loss_mask=batch.loss_mask,
                             packed_seq_params=batch.packed)
        (out * batch.loss_mask).sum().backward()
        return trainer.module.mtp.layers[0].eh_proj.weight.main_grad.clone()

    gradient = gradient_of_first(second)
    assert gradient.norm() > 0
    torch.testing.assert_close(gradient, gradient_of_first(other), atol=1e-5, rtol=1e-4)


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
