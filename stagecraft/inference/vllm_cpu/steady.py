"""A step in which the same sequences decode as in the step before: what is prepared for it is what it was, but for positions.

Not a defect of results but of time: in v1/worker/gpu_model_runner.py `_prepare_inputs` (:1920), `_determine_batch_execution_and_padding`
(:3718), `_get_slot_mappings` (:3856) and `_build_attention_metadata` (:2249) make all of it anew, a good part of a small model's step. On
a CPU what they make are views of buffers that stay, so that a step which goes on, with as many drafts to verify, moves the numbers there.
That is all there is to it only where `backbone` goes through all layers, for it reads the buffers alone, and where no prefixes are cached.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker.block_table import SlotMappingMode
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

PREPARE, METADATA = "_prepare_inputs", "_build_attention_metadata"
MADE = ("_determine_batch_execution_and_padding", "_get_slot_mappings", METADATA)


class Step:
    """A step that the next one may go on from; each of its sequences has as many tokens, of which all but the first are drafts.

    Attributes:
        made: by the name of the runner's method what it gave.
    """

    def __init__(self, runner: GPUModelRunner, prepared: Any, tokens: int):
        batch = runner.input_batch
        count = batch.num_reqs
        self.made, self._requests, self._tokens = {PREPARE: prepared}, [*batch.req_ids], tokens
        self._rows, self._ahead = np.arange(count)[:, None], np.arange(tokens)
        self._computed, self._known = batch.num_computed_tokens_cpu[:count, None], batch.token_ids_cpu
        self._ids, self._positions = (buffer.numpy()[:count * tokens].reshape(count, tokens)
                                      for buffer in (runner.input_ids.gpu, runner.positions))
        self._counted = runner.num_computed_tokens.numpy()[:count, None]
        self._lengths = [lengths.numpy()[:count, None] for lengths in (runner.seq_lens, runner.optimistic_seq_lens_cpu)]
        self._slots = [(table.slot_mapping.gpu.numpy()[:count * tokens].reshape(count, tokens), table.block_table.gpu.numpy(),
                        table.block_size)
                       for table in batch.block_table.block_tables if table.slot_mapping_mode == SlotMappingMode.TOKEN_TO_KV_SLOT]
        self._accepted = (runner.num_accepted_tokens.np[:count], batch.num_accepted_tokens_cpu[:count])

    def is_followed_by(self, runner: GPUModelRunner, scheduled: SchedulerOutput, tokens: np.ndarray) -> bool:
        """Whether nothing has changed but that every sequence is longer, in blocks that it had."""
        stack = getattr(getattr(runner.model, "model", None), "stagecraft_stack", None)
        return (stack is not None and METADATA in self.made and stack.last is self.made[METADATA][0]
                and runner.input_batch.req_ids == self._requests and _alike(scheduled, tokens) == self._tokens
                and not any(scheduled.scheduled_cached_reqs.new_block_ids))

    def go_on(self, runner: GPUModelRunner) -> None:
        """Move the buffers to the next positions of every sequence."""
        positions = self._computed + self._ahead
        self._ids[:] = self._known[self._rows, positions]
        self._positions[:], self._counted[:] = positions, self._computed
        for lengths in self._lengths:
            np.add(self._computed, self._tokens, out=lengths)
        for slots, blocks, size in self._slots:
            slots[:] = blocks[self._rows, positions // size] * size + positions % size
        if runner.speculative_config is not None:
            np.copyto(*self._accepted)
            self.made[PREPARE][1].draft_token_ids = torch.from_numpy(self._ids[:, 1:].flatten())
            self.made[METADATA][1].max_seq_len = int(self._lengths[0].max())


def _alike(scheduled: SchedulerOutput, tokens: np.ndarray) -> int:
    """How many tokens every sequence has, the same number of drafts among them; 0 if they differ."""
    first = int(tokens[0])
    drafts = scheduled.scheduled_spec_decode_tokens
    alike = (tokens == first).all() and len(drafts) == (len(tokens) if first > 1 else 0) and all(
        len(each) == first - 1 for each in drafts.values())
    return first if alike else 0


def _eligible(runner: GPUModelRunner, tokens: int) -> bool:
    drafting = runner.speculative_config is not None
    return (tokens > 0 and drafting == (tokens > 1) and (not drafting or runner.num_accepted_tokens_event is not None)
            and runner.lora_config is None and not runner.uses_mrope and not runner.enable_prompt_embeds
            and not runner.supports_mm_inputs and not runner.use_async_scheduling and runner.cache_config.mamba_cache_mode == "none"
            and runner.dcp_world_size == 1 and not runner.discard_request_mask.np[:runner.input_batch.num_reqs].any())


def mend() -> None:
    upstream = getattr(GPUModelRunner, PREPARE)

    def prepare(self: GPUModelRunner, scheduled: SchedulerOutput, tokens: np.ndarray) -> Any:
        step = self.__dict__.get("stagecraft_step")
        if step is not None and step.is_followed_by(self, scheduled, tokens):
            step.go_on(self)
            return step.made[PREPARE]
        self.stagecraft_step = None
        prepared = upstream(self, scheduled, tokens)
        if _eligible(self, each := _alike(scheduled, tokens)):
            self.stagecraft_step = Step(self, prepared, each)
        return prepared

    def once(name: str) -> None:
        make = getattr(GPUModelRunner, name)

        def made(self: GPUModelRunner, *arguments: Any, **named: Any) -> Any:
            step = self.__dict__.get("stagecraft_step")
            if step is None:
                return make(self, *arguments, **named)
            if name not in step.made:
                step.made[name] = make(self, *arguments, **named)
            return step.made[name]

        setattr(GPUModelRunner, name, made)

    setattr(GPUModelRunner, PREPARE, prepare)
    for name in MADE:
        once(name)
