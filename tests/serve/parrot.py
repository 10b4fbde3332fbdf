"""A checkpoint that answers given prompts as it is told, and any other as a random model does; nothing is trained.

The hidden states of a random network at the places of the answers are linearly independent as long as there are fewer of them than
the network is wide. So one least change to the head makes each of them give the token that is to come, by a margin of `MARGIN`
nats; what thinks, calls tools and ends its turn is then the model itself, with no grammar that leads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import NemotronHForCausalLM

from stagecraft.data.chat import render_prompt
from stagecraft.data.tokenizer import CHAT_TEMPLATE, IM_END
from tests.checkpoints import tiny_checkpoint, tiny_tokenizer

MARGIN, WIDTH = 10.0, 256


@torch.no_grad()
def parrot(directory: Path, lines: list[tuple[dict[str, Any], bool, str]]) -> Path:
    """Write the checkpoint.

    Args:
        lines: (row with `messages` and `tools` if any, whether thinking is on, the answer as it is to be written).
    """
    tiny_checkpoint(directory, hidden_size=WIDTH, expand=1)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE.read_text())
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.read_text()
    model = NemotronHForCausalLM.from_pretrained(directory).eval()
    states, logits, targets = [], [], []
    for row, thinking, answer in lines:
        prompt = tokenizer.encode(render_prompt(tokenizer, row, thinking), add_special_tokens=False)
        spoken = tokenizer.encode(answer + IM_END, add_special_tokens=False)
        hidden = model.model(torch.tensor([prompt + spoken])).last_hidden_state[0, len(prompt) - 1:-1]
        states.append(hidden.double())
        logits.append(model.lm_head(hidden).double())
        targets += spoken
    state, logit, target = torch.cat(states), torch.cat(logits), torch.tensor(targets)
    assert len(target) < WIDTH, "more to say than the head can hold"
    wanted = torch.zeros_like(logit)
    wanted[torch.arange(len(target)), target] = logit.amax(1) + MARGIN - logit[torch.arange(len(target)), target]
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"] += (torch.linalg.pinv(state) @ wanted).T.float()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
