"""The same reinforcement learning by TRL's GRPOTrainer, for `benchmarks/rl.py ... trl`, by a Python that has TRL: prints one JSON line.

`python -m benchmarks.trl_grpo MODEL CORPUS PARAMS.yaml STEPS`: PARAMS.yaml's `rl` section gives prompts and completions of a step, lengths,
learning rate and clipping; generation is transformers', as TRL has it without a GPU.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from stagecraft.data.chat import encode_prompt, render_prompt
from stagecraft.data.tasks import read_rows
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.environments import verify

MICRO_BATCH = 32  # completions at a time in the update


def main(model: Path, corpus: Path, rl: dict[str, Any], steps: int) -> dict[str, float]:
    """Train; figures of the steps after the first, which also warms up."""
    from datasets import Dataset
    from transformers import NemotronHForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(rl["threads"])
    tokenizer = load_tokenizer(corpus / "tokenizer")
    rows = [row for row in read_rows(corpus / "tasks" / "rl.jsonl") if len(encode_prompt(tokenizer, row)) <= rl["max_prompt_tokens"]]
    data = Dataset.from_list([{"prompt": render_prompt(tokenizer, row), "row": json.dumps(row)} for row in rows])
    batch = rl["prompts_per_step"] * rl["generations_per_prompt"]
    micro = min(MICRO_BATCH, batch)
    clock: dict[str, list[float]] = {"generate": [], "step": []}
    tokens: list[int] = []

    def reward(completions: list[str], completion_ids: list[list[int]], row: list[str], **unused: Any) -> list[float]:
        tokens.append(sum(map(len, completion_ids)))
        # TRL decodes without special tokens; whether a completion ended by itself is in its ids.
        return [verify(json.loads(asked), text, finished=ids[-1] == tokenizer.eos_token_id).score
                for asked, text, ids in zip(row, completions, completion_ids)]

    class Timed(GRPOTrainer):
        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            started = time.monotonic()
            try:
                return super()._generate_single_turn(*args, **kwargs)
            finally:
                clock["generate"].append(time.monotonic() - started)

        def _prepare_inputs(self, inputs: Any) -> Any:
            if self._step % self.args.gradient_accumulation_steps == 0:
                clock["step"].append(time.monotonic())
            return super()._prepare_inputs(inputs)

    with tempfile.TemporaryDirectory() as scratch:
        trainer = Timed(
            model=NemotronHForCausalLM.from_pretrained(model, dtype=torch.float32), reward_funcs=reward, train_dataset=data,
            processing_class=tokenizer,
            args=GRPOConfig(
                output_dir=scratch, use_cpu=True, bf16=False, report_to="none", save_strategy="no", logging_strategy="no",
                disable_tqdm=True, seed=rl["seed"], max_steps=steps,
                per_device_train_batch_size=micro, gradient_accumulation_steps=batch // micro,
                num_generations=rl["generations_per_prompt"], max_completion_length=rl["max_new_tokens"], temperature=rl["temperature"],
                learning_rate=rl["lr"], lr_scheduler_type="constant", warmup_steps=rl["warmup_steps"], max_grad_norm=rl["clip"],
                beta=0.0, epsilon=rl["ratio_clip_low"], epsilon_high=rl["ratio_clip_high"], loss_type="dapo",
                gradient_checkpointing=False, dataloader_pin_memory=False))
        trainer.train()
    seconds = time.monotonic() - clock["step"][1]
    generating = sum(clock["generate"][1:])
    return {"samples_per_second": batch * (steps - 1) / seconds, "generated_tokens_per_second": sum(tokens[1:]) / generating,
            "share_generate": generating / seconds, "share_update": 1 - generating / seconds, "share_handover": 0.0}


if __name__ == "__main__":
    profile = YAML(typ="safe").load(Path(sys.argv[3]).read_text())
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), profile["rl"], int(sys.argv[4]))))
