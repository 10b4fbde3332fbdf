"""vLLM inside this process: rollouts, evaluation and weight updates, beside a trainer that shares the process or alone.

One engine computes in one dtype. vLLM is imported when the first engine is made, never with this module.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed
from safetensors.torch import save_file
from torch import Tensor

from stagecraft.contract.errors import UserError
from stagecraft.inference import guest
from stagecraft.inference.hardware import OF_ALL, OF_MANY
from stagecraft.inference.imports import without_scientific_libraries
from stagecraft.inference.memory import NO_SHARE, kv_cache_bytes, served_config

ENVIRONMENT = {**OF_ALL, "VLLM_HOST_IP": "127.0.0.1"}  # one process: no name lookups
SHARED_MEMORY = Path("/dev/shm")
WEIGHTS = "stagecraft-weights-"  # of a process that updates them, by its number
PREFILL = 65_536  # tokens of one step at most, if a single prompt is no longer


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    Attributes:
        token_ids: what was generated; a stop token is the last of them.
        logprobs: natural log-probability of each token under the distribution it was drawn from; None unless asked for.
        finished: a stop token ended it; False if `max_tokens` or the context did.
    """

    token_ids: list[int]
    logprobs: list[float] | None
    finished: bool


class Engine:
    """A model loaded by vLLM in this process.

    Equal checkpoints, arguments and calls give equal tokens, also for sampling: every request draws from a generator of its own.
    The process group, the random generators, the number of threads and the memory policy of a trainer in the same process stay
    as they were found.

    Args:
        model: a canonical checkpoint, plain or quantised by ModelOpt.
        max_model_len: prompt and answer together, tokens.
        max_num_seqs: sequences computed at the same time.
        dtype: of weights, activations and attention cache: float32, bfloat16 or float16.
        seed: of sampling, unless a call gives its own.
        draft_tokens: tokens drafted by the checkpoint's MTP block per step; 0 turns speculative decoding off.
        tensor: processes that divide the model, each with a GPU of its own where there are GPUs; 1: this one has all of it.
        threads: OpenMP threads of each of them while the engine computes. More than one pays only for models of many millions of
            parameters, and only with as many idle cores: on a busy machine two threads were seen to take ten times as long as one.

    Raises:
        UserError: `model` is no checkpoint, cannot be served, or cannot draft and was asked to.
    """

    def __init__(self, model: Path, *, max_model_len: int, max_num_seqs: int, dtype: str = "float32", seed: int = 0,
                 draft_tokens: int = 0, tensor: int = 1, threads: int = 1):
        config = served_config(Path(model))
        if draft_tokens and not config.get("num_nextn_predict_layers"):
            raise UserError("the checkpoint has no MTP block to draft with", where=str(model), mend="set draft_tokens to 0")
        self.max_model_len, self._seed, self._drafts, self._tensor = max_model_len, seed, draft_tokens > 0, tensor
        os.environ.update(ENVIRONMENT)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        if tensor > 1:
            os.environ.update(OF_MANY)
        self._threads, self._group_was_there = threads, torch.distributed.is_initialized()
        with guest.at_work(threads), guest.arrival():
            without_scientific_libraries()
            from safetensors import SafetensorError
            from vllm import LLM

            try:
                self._llm = LLM(
                    model=str(model), dtype=dtype, seed=seed, max_model_len=max_model_len, max_num_seqs=max_num_seqs,
                    # One step prefills every prompt of a batch, or so many that their activations fit beside a large model.
                    max_num_batched_tokens=min(max_model_len * max_num_seqs, max(max_model_len, PREFILL)), enforce_eager=True,
                    skip_tokenizer_init=True, generation_config="vllm", enable_prefix_caching=False, disable_log_stats=not draft_tokens,
                    logprobs_mode="processed_logprobs", async_scheduling=False, use_tqdm_on_load=False,
                    kv_cache_memory_bytes=kv_cache_bytes(config, max_model_len, max_num_seqs, dtype, draft_tokens, tensor),
                    gpu_memory_utilization=NO_SHARE,
                    tensor_parallel_size=tensor, distributed_executor_backend="mp" if tensor > 1 else None,
                    speculative_config={"method": "mtp", "num_speculative_tokens": draft_tokens} if draft_tokens else None,
                )
            except (ValueError, KeyError, OSError, NotImplementedError, SafetensorError) as error:
                raise UserError(f"vLLM cannot serve this checkpoint: {error}", where=str(model),
                                mend="check its config.json and weights, or run the stage that writes it again") from error

    def generate(self, prompts: Sequence[Sequence[int]], *, temperature: float, max_tokens: int, n: int = 1,
                 stop_token_ids: Sequence[int] = (), seed: int | Sequence[int] | None = None, logprobs: bool = False,
                 between: Callable[[], object] | None = None) -> list[list[Completion]]:
        """Continue every prompt `n` times, until a stop token or `max_tokens`.

        Args:
            prompts: token ids.
            temperature: 0 is greedy (then n must be 1, for n answers would be one answer); 1 is the model's own distribution.
            stop_token_ids: the first of them ends a completion and is part of it. No other token ends one.
            seed: of this call's sampling, or one for each completion; the engine's own if None.
            logprobs: return the log-probability of each token after temperature.
            between: called before every step of the engine; it may call `update_weights`, and tokens after that come from the new
                weights, on top of the states and keys of the old.

        Returns:
            for each prompt its completions.

        Raises:
            ValueError: an empty prompt, one that leaves no room in the context, or n > 1 at temperature 0.
        """
        from vllm import SamplingParams

        if temperature == 0 and n > 1:
            raise ValueError("greedy answers are all the same: n must be 1 at temperature 0")
        self._check(prompts)
        count = len(prompts) * n
        seeds = seed if isinstance(seed, Sequence) else completion_seeds(self._seed if seed is None else seed, count)
        settings = [
            SamplingParams(temperature=temperature, max_tokens=max_tokens, stop_token_ids=list(stop_token_ids), ignore_eos=True,
                           detokenize=False, logprobs=0 if logprobs else None, flat_logprobs=logprobs,
                           seed=None if temperature == 0 else own)
            for own in seeds]
        outputs = self._run([prompt for prompt in prompts for _ in range(n)], settings, between)
        completions = [_completion(output.outputs[0]) for output in outputs]
        return [completions[start:start + n] for start in range(0, count, n)]

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural log-probability of every token after the first, given those before it.

        Raises:
            ValueError: a sequence that is empty or as long as the context.
        """
        from vllm import SamplingParams

        self._check(sequences)
        settings = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False, prompt_logprobs=0, flat_logprobs=True)
        return [_flat(output.prompt_logprobs, skip=1) for output in self._run(sequences, [settings] * len(sequences))]

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace weights in place; names and shapes as in the checkpoint's files.

        The MTP block keeps its weights: drafts may be accepted less often, what is generated does not depend on them.
        """
        with guest.at_work(self._threads), guest.arrival():
            if self._tensor == 1:
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": list(weights)})
            else:
                with _shared_directory() as directory:  # each process reads its share of them
                    save_file(dict(weights), directory / "model.safetensors", metadata={"format": "pt"})
                    self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})
        self._llm.reset_prefix_cache()

    def draft_statistics(self) -> tuple[int, int, list[int]]:
        """Since the start: (drafts, drafted tokens, accepted tokens by position in the draft); zeros without drafting."""
        if not self._drafts:
            return 0, 0, []
        found = {metric.name: metric for metric in self._llm.get_metrics() if metric.name.startswith("vllm:spec_decode")}
        return (found["vllm:spec_decode_num_drafts"].value, found["vllm:spec_decode_num_draft_tokens"].value,
                list(found["vllm:spec_decode_num_accepted_tokens_per_pos"].values))

    def close(self) -> None:
        """Free the model and its cache; a process group that vLLM made goes with them, one that was there before stays."""
        if self._llm is not None:
            guest.shut_down(self._llm, keep_process_group=self._group_was_there)
            self._llm = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        for index, prompt in enumerate(prompts):
            if not 0 < len(prompt) < self.max_model_len:
                raise ValueError(f"prompt {index} has {len(prompt)} tokens; 1 to {self.max_model_len - 1} fit max_model_len")

    def _run(self, prompts: Sequence[Sequence[int]], settings: list[Any], between: Callable[[], object] | None = None) -> list[Any]:
        if not prompts:
            return []
        with guest.at_work(self._threads), guest.interrupted(self._llm.llm_engine, between):
            return self._llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], settings, use_tqdm=False)


def completion_seeds(seed: int, count: int) -> list[int]:
    """The seeds of `count` completions, from one."""
    return (np.random.SeedSequence(seed).generate_state(count, np.uint64) >> np.uint64(1)).tolist()


def _completion(output: Any) -> Completion:
    return Completion(list(output.token_ids), None if output.logprobs is None else _flat(output.logprobs, skip=0),
                      output.finish_reason == "stop")


def _flat(logprobs: Any, skip: int) -> list[float]:
    """The log-probability of the token itself at each position: the first entry of each in vLLM's flat layout."""
    return [logprobs.logprobs[start] for start in logprobs.start_indices[skip:]]


@contextmanager
def _shared_directory() -> Iterator[Path]:
    """A directory in shared memory for the weights of a whole model, which those that were killed over theirs have left behind, perhaps
    under this process's number."""
    for path in SHARED_MEMORY.glob(f"{WEIGHTS}*"):
        if (number := int(path.name.removeprefix(WEIGHTS))) == os.getpid() or not psutil.pid_exists(number):
            shutil.rmtree(path, ignore_errors=True)
    own = SHARED_MEMORY / f"{WEIGHTS}{os.getpid()}"
    own.mkdir()
    try:
        yield own
    finally:
        shutil.rmtree(own)
