"""vLLM inside this process: rollouts, evaluation and weight updates without a server in between.

One engine computes in one dtype on one device. vLLM is imported when the first engine is made, never with this module.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from stagecraft.contract.errors import UserError
from stagecraft.inference.checkpoint_facts import cache_bytes, read_config

if TYPE_CHECKING:
    from torch import Tensor

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        token_ids: what was generated, the stop token included.
        logprobs: natural log-probability of each under the model itself (temperature one), None unless asked for.
        finished: a stop token ended it; False if `max_tokens` or the context did.
    """

    token_ids: list[int]
    logprobs: list[float] | None
    finished: bool


class Engine:
    """A model loaded by vLLM in this process.

    Equal checkpoints, arguments and calls give equal tokens, also for sampling: every request draws from a generator of its own.

    Args:
        model: a canonical checkpoint, plain or quantised by ModelOpt.
        max_model_len: prompt and answer together, tokens.
        max_num_seqs: sequences computed at the same time.
        dtype: of weights, activations and attention cache: float32, bfloat16 or float16.
        seed: of sampling, unless a call gives its own.
        draft_tokens: tokens drafted by the checkpoint's MTP block per step; 0 turns speculative decoding off.
        threads: CPU threads of matrix products.

    Raises:
        UserError: `model` is no checkpoint, or cannot draft and was asked to.
    """

    def __init__(self, model: Path, *, max_model_len: int, max_num_seqs: int, dtype: str = "float32", seed: int = 0,
                 draft_tokens: int = 0, threads: int = 1):
        config = read_config(model)
        if draft_tokens and not config.get("num_nextn_predict_layers"):
            raise UserError("the checkpoint has no MTP block to draft with", where=str(model), mend="set draft_tokens to 0")
        self.max_model_len, self._seed, self._drafts = max_model_len, seed, draft_tokens > 0
        os.environ.update(_environment(threads))
        with _undisturbed_process():
            import torch
            from vllm import LLM

            torch.set_num_threads(threads)
            self._owns_group = not torch.distributed.is_initialized()
            self._llm = LLM(
                model=str(model), dtype=dtype, seed=seed, max_model_len=max_model_len, max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max(2048, max_model_len, max_num_seqs * (1 + draft_tokens)), enforce_eager=True,
                skip_tokenizer_init=True, generation_config="vllm", enable_prefix_caching=False, disable_log_stats=not draft_tokens,
                logprobs_mode="raw_logprobs", async_scheduling=False,
                kv_cache_memory_bytes=cache_bytes(config, max_model_len=max_model_len, max_num_seqs=max_num_seqs,
                                                  draft_tokens=draft_tokens, element_bytes=ELEMENT_BYTES[dtype]),
                speculative_config={"method": "mtp", "num_speculative_tokens": draft_tokens} if draft_tokens else None,
            )

    def generate(self, prompts: Sequence[Sequence[int]], *, temperature: float, max_tokens: int, stop_token_ids: Sequence[int],
                 n: int = 1, seed: int | None = None, logprobs: bool = False) -> list[list[Completion]]:
        """Continue every prompt `n` times, until a stop token or `max_tokens`.

        Args:
            temperature: 0 is greedy (then n must be 1, for n answers would be one answer).
            seed: of this call's sampling; the engine's own if None.

        Returns:
            for each prompt its completions.

        Raises:
            ValueError: an empty prompt, one that leaves no room in the context, or n > 1 at temperature 0.
        """
        from vllm import SamplingParams

        if temperature == 0 and n > 1:
            raise ValueError("greedy answers are all the same: n must be 1 at temperature 0")
        self._check(prompts, room=1)
        seeds = iter(np.random.SeedSequence(self._seed if seed is None else seed).generate_state(len(prompts) * n, np.uint64).tolist())
        outputs = self._run([list(prompt) for prompt in prompts for _ in range(n)], [
            SamplingParams(temperature=temperature, max_tokens=max_tokens, stop_token_ids=list(stop_token_ids), ignore_eos=True,
                           detokenize=False, logprobs=0 if logprobs else None, flat_logprobs=logprobs,
                           seed=None if temperature == 0 else next(seeds) >> 1)
            for _ in range(len(prompts) * n)])
        completions = [_completion(output.outputs[0]) for output in outputs]
        return [completions[start:start + n] for start in range(0, len(completions), n)]

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural log-probability of every token after the first, given those before it.

        Raises:
            ValueError: a sequence that is empty or as long as the context.
        """
        from vllm import SamplingParams

        self._check(sequences, room=1)
        asked = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False, prompt_logprobs=0, flat_logprobs=True)
        outputs = self._run([list(sequence) for sequence in sequences], [asked] * len(sequences))
        return [_flat(output.prompt_logprobs, skip=1) for output in outputs]

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace weights in place; names and shapes as in the checkpoint's files (`mtp.*` too, when drafting)."""
        weights = list(weights)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})

    def draft_statistics(self) -> tuple[int, int, list[int]]:
        """Since the start: (drafts, drafted tokens, accepted tokens by position in the draft); zeros without drafting."""
        if not self._drafts:
            return 0, 0, []
        found = {metric.name: metric for metric in self._llm.get_metrics() if metric.name.startswith("vllm:spec_decode")}
        return (found["vllm:spec_decode_num_drafts"].value, found["vllm:spec_decode_num_draft_tokens"].value,
                list(found["vllm:spec_decode_num_accepted_tokens_per_pos"].values))

    def close(self) -> None:
        """Free the model and its cache; a process group that vLLM made goes with them, one that was there before stays."""
        from vllm.distributed import destroy_distributed_environment, destroy_model_parallel

        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        destroy_model_parallel()
        if self._owns_group:
            destroy_distributed_environment()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check(self, prompts: Sequence[Sequence[int]], room: int) -> None:
        for index, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= self.max_model_len - room:
                raise ValueError(f"prompt {index} has {len(prompt)} tokens; 1 to {self.max_model_len - room} fit max_model_len")

    def _run(self, prompts: list[list[int]], settings: list[Any]) -> list[Any]:
        return self._llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings, use_tqdm=False)


def _environment(threads: int) -> dict[str, str]:
    """What vLLM reads when it is imported or makes an engine."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1", "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(threads),
    }


@contextmanager
def _undisturbed_process() -> Iterator[None]:
    """vLLM seeds every global generator and replaces `torch.set_num_threads` for good: undo both, a trainer may live here too."""
    import torch

    set_num_threads, states = torch.set_num_threads, (random.getstate(), np.random.get_state(), torch.get_rng_state())
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _completion(output: Any) -> Completion:
    return Completion(list(output.token_ids), None if output.logprobs is None else _flat(output.logprobs, skip=0),
                      output.finish_reason == "stop")


def _flat(logprobs: Any, skip: int) -> list[float]:
    """The log-probability of the token itself at each position: the first entry of each in vLLM's flat layout."""
    return [logprobs.logprobs[start] for start in logprobs.start_indices[skip:]]
