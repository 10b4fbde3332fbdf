"""Requests with a seed of their own on a CPU, when their prompt is computed in several chunks.

A chunk that does not end the prompt samples a token nobody wants, so vLLM takes the draw back: v1/worker/gpu_model_runner.py:3502,
`gen.set_offset(gen.get_offset() - 4)`. Generators on a CPU have no offset, and the whole engine dies of a RuntimeError.

Here a request's draws are numbered: draw i is a hash of (seed, i), and taking one back is counting down. That also spares the
one call into torch per request and step of v1/sample/ops/topk_topp_sampler.py:345.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler, apply_top_k_top_p
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

OFFSET_PER_DRAW = 4  # of CUDA's Philox generator, which upstream counts in


class NumberedGenerator(torch.Generator):
    """A generator whose categorical draws are counted; for anything else it is the torch generator of the same seed."""

    draws = 0

    def get_offset(self) -> int:
        return self.draws * OFFSET_PER_DRAW

    def set_offset(self, offset: int) -> None:
        self.draws = offset // OFFSET_PER_DRAW


def draw_seeds(generators: list[NumberedGenerator]) -> Tensor:
    """The next draw of each, int64 in [0, 2^31): SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) of its seed and number."""
    seeds = np.array([generator.initial_seed() for generator in generators], np.uint64)
    draws = np.array([generator.draws for generator in generators], np.uint64)
    for generator in generators:
        generator.draws += 1
    with np.errstate(over="ignore"):
        bits = _finalise(_finalise(seeds) + (draws + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return torch.from_numpy((bits >> np.uint64(33)).astype(np.int64))


def _finalise(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def mend() -> None:
    """Number the draws of requests that have a seed."""
    upstream_add, upstream_sample = InputBatch.add_request, TopKTopPSampler.forward_cpu

    def add(self: InputBatch, request: CachedRequestState) -> int:
        if request.generator is not None and not isinstance(request.generator, NumberedGenerator):
            seed = request.generator.initial_seed()
            request.generator = NumberedGenerator()
            request.generator.manual_seed(seed)
        return upstream_add(self, request)

    def sample(self: TopKTopPSampler, logits: Tensor, generators: dict[int, NumberedGenerator], k: Tensor | None,
               p: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not generators or self.use_fp64_gumbel:
            return upstream_sample(self, logits, generators, k, p)
        logits = apply_top_k_top_p(logits, k, p)
        processed = {"processed_logits": lambda: logits, "processed_logprobs": lambda: logits.log_softmax(-1, dtype=torch.float32)}
        seeds = torch.empty(len(logits), dtype=torch.int64)
        if len(generators) < len(logits):
            seeds.random_(0, 2**31)
        seeds[list(generators)] = draw_seeds(list(generators.values()))
        chosen = torch.ops._C.fused_gumbel_argmax(logits.float(), seeds)
        return chosen, processed.get(self.logprobs_mode, lambda: None)()

    InputBatch.add_request, TopKTopPSampler.forward_cpu = add, sample
