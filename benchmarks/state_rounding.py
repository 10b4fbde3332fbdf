"""A Mamba state cache of FP16 on a CPU, for study: the cache stays FP32 and holds FP16 numbers only, rounded where a GPU rounds.

Upstream has the real thing on GPUs alone: platforms/cpu.py:304 sets `--mamba-ssm-cache-dtype` back to float32 on CPUs with AVX-512
BF16, config/mamba.py:85 refuses stochastic rounding off CUDA. The kernels there compute a token in FP32, take its output from the
unrounded state and round what they store (model_executor/layers/mamba/ops/mamba_ssm.py:466); a prefill stores its last state rounded
to nearest in any case (mamba_mixer2.py:897). The same is done here, so the numbers are those of a 16-bit cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from stagecraft.numerics import fp16
from stagecraft.numerics.philox import MASK, random_words

Rounding = Literal["none", "nearest", "stochastic"]


class StateRounding:
    """Rounds states; every call draws from Philox under a seed of its own, as the kernels do.

    Args:
        rounding: none (an FP32 cache), nearest or stochastic.
        seed: of the sequence of seeds.
        rounds: of Philox4x32; Nemotron 3 Super uses 5 (arXiv 2604.12374, section 4).
    """

    def __init__(self, rounding: Rounding, seed: int = 0, rounds: int = 5):
        self.rounding, self.rounds = rounding, rounds
        self._seeds = torch.Generator().manual_seed(seed)

    def stored(self, state: Tensor) -> Tensor:
        """float32 -> the float32 that a cache would give back, any shape."""
        if self.rounding == "none":
            return state
        if self.rounding == "nearest":
            return fp16.nearest(state).float()
        seed = int(torch.randint(0, MASK + 1, (), generator=self._seeds))
        words = random_words(torch.arange(state.numel()).view(state.shape), seed, self.rounds)
        return fp16.stochastic(state, words).float()

    def prefilled(self, state: Tensor) -> Tensor:
        """As `stored`, of the state that a prefill ends in."""
        return state if self.rounding == "none" else fp16.nearest(state).float()


@contextmanager
def rounded_states(rounding: StateRounding) -> Iterator[None]:
    """Engines in this process round their Mamba states in a `with` block; not for speculative decoding.

    Raises:
        NotImplementedError: inside, from an engine with drafts.
    """
    from vllm.model_executor.layers.mamba import mamba_mixer2
    from vllm.model_executor.layers.mamba.ops.ssu_dispatch import CPUSSUBackend

    from stagecraft.inference.vllm_cpu.backbone import Stack

    decode, fast, prefill = CPUSSUBackend.__call__, Stack.takes, mamba_mixer2.mamba_chunk_scan_combined_varlen

    def round_written(state: Tensor, slots: Tensor, accepted: Tensor | None) -> None:
        if accepted is not None:
            raise NotImplementedError("rounded states with speculative decoding")
        written = slots.flatten().long()
        state[written] = rounding.stored(state[written])

    def decode_rounded(self: CPUSSUBackend, state: Tensor, *args: Any, state_batch_indices: Tensor,
                       dst_state_batch_indices: Tensor | None = None, num_accepted_tokens: Tensor | None = None, **rest: Any) -> None:
        decode(self, state, *args, state_batch_indices=state_batch_indices, dst_state_batch_indices=dst_state_batch_indices,
               num_accepted_tokens=num_accepted_tokens, **rest)
        round_written(state, state_batch_indices if dst_state_batch_indices is None else dst_state_batch_indices, num_accepted_tokens)

    def prefill_rounded(*args: Any, **rest: Any) -> Tensor:
        return rounding.prefilled(prefill(*args, **rest))

    CPUSSUBackend.__call__, Stack.takes = decode_rounded, lambda *_: False  # layer by layer
    mamba_mixer2.mamba_chunk_scan_combined_varlen = prefill_rounded
    try:
        yield
    finally:
        CPUSSUBackend.__call__, Stack.takes, mamba_mixer2.mamba_chunk_scan_combined_varlen = decode, fast, prefill
