"""The other side of `benchmarks/rl.py trl`, in an environment of its own: TRL's GRPOTrainer on the same model, prompts and samples.

It generates through transformers: TRL's vLLM mode needs a GPU. The reward costs nothing, so the time is generation and update.
"""

import json
import sys
import time
from pathlib import Path

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

project, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.set_num_threads(2)
tokenizer = AutoTokenizer.from_pretrained(project / "artifacts" / "sft")
model = AutoModelForCausalLM.from_pretrained(project / "artifacts" / "sft", dtype=torch.float32)
if hasattr(model, "set_experts_implementation"):
    model.set_experts_implementation("eager")  # the batched one is many times slower on a CPU
rows = [json.loads(line) for line in (project / "artifacts/corpus/tasks/rl.jsonl").read_text().splitlines()]
rows = [row for row in rows if not row.get("tools")][:wanted["steps"] * wanted["prompts_per_step"]]
samples = wanted["prompts_per_step"] * wanted["generations_per_prompt"]


ends: list[float] = []


class Clock(TrainerCallback):
    """Notes when each step ended."""

    def on_step_end(self, *_: object, **__: object) -> None:
        """Called by the trainer."""
        ends.append(time.monotonic())


trainer = trl.GRPOTrainer(
    model=model, processing_class=tokenizer, train_dataset=Dataset.from_list([{"prompt": row["messages"]} for row in rows]),
    reward_funcs=lambda completions, **_: [float(len(str(completion)) % 2) for completion in completions], callbacks=[Clock()],
    args=trl.GRPOConfig(
        output_dir=str(project / ".work" / "trl"), max_steps=wanted["steps"], per_device_train_batch_size=samples,
        num_generations=wanted["generations_per_prompt"], max_completion_length=wanted["max_new_tokens"], learning_rate=wanted["lr"],
        temperature=wanted["temperature"], beta=0.0, epsilon=0.2, epsilon_high=0.28, use_cpu=True, bf16=False, report_to=[],
        gradient_checkpointing=False, save_strategy="no", logging_strategy="no", disable_tqdm=True))
trainer.train()
per_step = (ends[-1] - ends[0]) / (len(ends) - 1)  # without the first, which warms up
print(json.dumps({"samples_per_second": samples / per_step, "version": trl.__version__}))
