"""vLLM inside this process: rollouts, evaluation and log-probabilities, beside a trainer that shares the process or alone."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stagecraft.contract.errors import UserError
from stagecraft.inference.memory import kv_cache_bytes, read_config

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process: weights are handed over by reference
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads stay where the trainer's are
    "VLLM_HOST_IP": "127.0.0.1",  # one process: no name lookups
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one more than the longest sequence, see Engine.__init__
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    Args:
        token_ids: what was generated; a stop token is the last of them.
        logprobs: natural log-probability of each token under the distribution it was drawn from; None when not asked for.
        finished: whether a stop token ended it (False: it ran into `max_tokens` or the engine's length).
    """

    token_ids: list[int]
    logprobs: list[float] | None
    finished: bool


class Engine:
    """One model under vLLM in this process.

    Args:
        model: checkpoint directory (Hugging Face layout, plain or quantised by ModelOpt).
        max_model_len: most tokens of prompt and answer together.
        max_num_seqs: most sequences in one batch.
        dtype: what is computed in, "float32" or "bfloat16".
        seed: of the sampling where `generate` gets none.
        draft_tokens: tokens that the MTP block proposes at a time; 0 leaves speculation out.
        threads: OpenMP threads of this process.

    The process group, the random generators and the thread count of a trainer in the same process are left as they were found
    (`threads` apart).

    Raises:
        UserError: the checkpoint cannot be read, or vLLM cannot serve its shapes.
    """

    def __init__(self, model: Path, *, max_model_len: int, max_num_seqs: int, dtype: str = "float32", seed: int = 0,
                 draft_tokens: int = 0, threads: int = 1):
        for name, value in ENVIRONMENT.items():
            os.environ[name] = value
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        self.model, self.seed, self.max_model_len, self.max_num_seqs = Path(model), seed, max_model_len, max_num_seqs
        self._draws = 0
        torch.set_num_threads(threads)
        config = read_config(self.model)
        # Scoring a sequence of the full length asks for one token after it.
        length = max_model_len + 1
        with _guests_manners():
            from vllm import LLM

            try:
                self._llm = LLM(
                    model=str(self.model), skip_tokenizer_init=True, dtype=dtype, seed=seed, enforce_eager=True,
                    max_model_len=length, max_num_seqs=max_num_seqs, max_num_batched_tokens=max(2048, length, 64 * max_num_seqs),
                    kv_cache_memory_bytes=kv_cache_bytes(config, length, max_num_seqs, dtype, draft_tokens),
                    enable_prefix_caching=False, async_scheduling=False, logprobs_mode="processed_logprobs", disable_log_stats=True,
                    speculative_config={"method": "mtp", "num_speculative_tokens": draft_tokens} if draft_tokens else None,
                )
            except (ValueError, NotImplementedError, KeyError, OSError) as error:
                raise UserError(f"vLLM cannot serve this checkpoint: {error}", where=str(self.model),
                                mend="check config.json and the weights against a checkpoint that works") from error

    def generate(self, prompts: Sequence[list[int]], *, temperature: float, max_tokens: int, n: int = 1,
                 stop_token_ids: Sequence[int] = (), seed: int | None = None, logprobs: bool = False) -> list[list[Completion]]:
        """`n` completions of each prompt, in the order of the prompts.

        Args:
            prompts: token ids.
            temperature: 0 for greedy; 1 draws from the model's own distribution.
            max_tokens: most tokens of a completion.
            stop_token_ids: a completion ends with the first of them, which is part of it. No other token ends one.
            seed: the i-th of all completions draws from its own generator, seeded by (seed, i): equal calls give equal tokens. None
                continues the engine's own sequence, which begins with its `seed`.
            logprobs: return the log-probability of each token after temperature.

        Raises:
            ValueError: a prompt is empty or leaves no room for an answer.
        """
        from vllm import SamplingParams

        if seed is None:
            seed, self._draws = self.seed + 1_000_003 * self._draws, self._draws + 1
        longest = max(map(len, prompts), default=1)
        if longest >= self.max_model_len:
            raise ValueError(f"a prompt of {longest} tokens leaves no room for an answer in max_model_len {self.max_model_len}")
        settings = [
            SamplingParams(
                temperature=temperature, max_tokens=min(max_tokens, self.max_model_len - len(prompt)), ignore_eos=True,
                stop_token_ids=list(stop_token_ids), detokenize=False, logprobs=0 if logprobs else None, flat_logprobs=logprobs,
                seed=_mix(seed, index * n + sample) if temperature > 0 else None)
            for index, prompt in enumerate(prompts) for sample in range(n)]
        outputs = self._run([prompt for prompt in prompts for _ in range(n)], settings)
        completions = [_completion(output.outputs[0]) for output in outputs]
        return [completions[begin:begin + n] for begin in range(0, len(completions), n)]

    def logprobs(self, sequences: Sequence[list[int]]) -> list[list[float]]:
        """Natural log-probability of each token after the first, given those before it.

        Args:
            sequences: token ids, 1 to `max_model_len` a sequence.

        Returns:
            One value fewer than tokens for each sequence.
        """
        from vllm import SamplingParams

        settings = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, ignore_eos=True,
                                  flat_logprobs=True)
        outputs = self._run(list(sequences), [settings] * len(sequences))
        return [_own(output.prompt_logprobs)[1:] for output in outputs]

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the model's weights in place.

        Args:
            weights: (name in a Hugging Face checkpoint, tensor) for every tensor of the checkpoint; `mtp.*` are read when the
                engine drafts. Tensors are copied.
        """
        with _guests_manners():
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": list(weights)})
        self._llm.reset_prefix_cache()

    def close(self) -> None:
        """Free the engine; a process group that was there before it stays."""
        from vllm.distributed.parallel_state import destroy_model_parallel

        core = self._llm.llm_engine.engine_core.engine_core
        core.model_executor.shutdown()
        core.scheduler.shutdown()
        del self._llm
        destroy_model_parallel()
        gc.unfreeze()
        gc.collect()

    def _run(self, prompts: list[list[int]], settings: list[Any]) -> list[Any]:
        if not prompts:
            return []
        from vllm import TokensPrompt

        return self._llm.generate([TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], settings, use_tqdm=False)


def _completion(output: Any) -> Completion:
    return Completion(list(output.token_ids), None if output.logprobs is None else _own(output.logprobs), output.finish_reason == "stop")


def _own(flat: Any) -> list[float]:
    """The chosen token's value at each position: vLLM puts it first."""
    return [flat.logprobs[begin] if begin < end else 0.0 for begin, end in zip(flat.start_indices, flat.end_indices)]


def _mix(seed: int, index: int) -> int:
    """A seed of 63 bits of its own for every (seed, index): SplitMix64's finaliser."""
    x = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xD1B54A32D192ED03) & (2**64 - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (x ^ (x >> 31)) >> 1


@contextmanager
def _guests_manners() -> Iterator[None]:
    """vLLM seeds every global generator and disables torch.set_num_threads: put both back, the process may belong to a trainer."""
    import random

    import numpy as np

    before = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.set_num_threads
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        torch.set_num_threads = before[3]
