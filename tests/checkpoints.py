"""A tiny random canonical checkpoint and its tokenizer, for every test that needs a model before a trained one exists."""

from __future__ import annotations

import argparse
import inspect
import json
import math
from copy import deepcopy
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import NemotronHConfig, NemotronHForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 2048
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
PLAIN = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif -%}"
    "{%- for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif -%}"
)
ARCHITECTURE = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "max_position_embeddings": 2048, "tie_word_embeddings": False,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 128,
    "ssm_state_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 32, "n_groups": 1, "conv_kernel": 4, "expand": 2, "chunk_size": 32,
    "time_step_limit": [0.0, 1e9],
    "n_routed_experts": 32, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "moe_latent_size": 64,
    "moe_shared_expert_intermediate_size": 256, "routed_scaling_factor": 2.5, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 4,
}
PATTERN, MTP_PATTERN = "M*EM*E", "*E"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of exactly `VOCABULARY` entries, trained on the interpreter's argparse module; the caller may change it."""
    return deepcopy(_trained())


@cache
def _trained() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(PLAIN), special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([inspect.getsource(argparse), inspect.getsource(inspect)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>",
                                   additional_special_tokens=["</s>", "<|im_start|>"])
    fast.add_tokens(PLAIN)
    fast.chat_template = TEMPLATE
    assert len(fast) == VOCABULARY, len(fast)
    return fast


def tiny_checkpoint(directory: Path, seed: int = 0, mtp: bool = True, pattern: str = PATTERN, dtype: torch.dtype = torch.float32,
                    **overrides: object) -> Path:
    """Write a random `nemotron_h` checkpoint that transformers and vLLM load; `overrides` are NemotronHConfig keys.

    Matrices have the scale 1/sqrt(fan-in) (embeddings 1, head 3 times that), so that logits spread over several nats and no layer is idle.
    """
    directory = Path(directory)
    config = NemotronHConfig(**{**ARCHITECTURE, "layers_block_type": NemotronHConfig._pattern_to_list(pattern), **overrides})
    model = NemotronHForCausalLM(config)
    config.time_step_min = 1e-12  # after construction: transformers initialises dt from log(time_step_min)
    generator = torch.Generator().manual_seed(seed)
    _randomise(model, generator)
    model.to(dtype).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    if mtp:
        path = directory / "model.safetensors"
        save_file({**load_file(path), **mtp_weights(config, generator, dtype)}, path, metadata={"format": "pt"})
    path = directory / "config.json"
    written = json.loads(path.read_text())
    written.update(hybrid_override_pattern=pattern, num_hidden_layers=len(pattern), time_step_limit=config.time_step_limit,
                   mtp_hybrid_override_pattern=MTP_PATTERN, num_nextn_predict_layers=int(mtp))
    path.write_text(json.dumps(written, indent=2) + "\n")
    return directory


def _randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and "conv1d" not in name:
            scale = 1.0 if "embed" in name else (3.0 if "lm_head" in name else 1.0) / math.sqrt(parameter.shape[-1])
            parameter.data.normal_(0, scale, generator=generator)
        elif name.endswith("A_log"):
            parameter.data.uniform_(0.0, 1.5, generator=generator)
        elif name.endswith("dt_bias"):
            parameter.data.uniform_(-4.0, 0.0, generator=generator)
        elif "norm" in name:
            parameter.data.uniform_(0.8, 1.2, generator=generator)
        else:
            parameter.data.uniform_(-0.5, 0.5, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.05, generator=generator)


def mtp_weights(config: NemotronHConfig, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The `mtp.layers.{0,1}.*` tensors of one shared `*E` block, under the names vLLM reads."""
    hidden, latent = config.hidden_size, config.moe_latent_size or config.hidden_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    shapes = {
        "0.eh_proj": (hidden, 2 * hidden), "0.mixer.q_proj": (queries, hidden), "0.mixer.k_proj": (keys, hidden),
        "0.mixer.v_proj": (keys, hidden), "0.mixer.o_proj": (hidden, queries), "1.mixer.gate": (config.n_routed_experts, hidden),
        "1.mixer.shared_experts.up_proj": (config.moe_shared_expert_intermediate_size, hidden),
        "1.mixer.shared_experts.down_proj": (hidden, config.moe_shared_expert_intermediate_size),
    }
    for expert in range(config.n_routed_experts):
        shapes[f"1.mixer.experts.{expert}.up_proj"] = (config.moe_intermediate_size, latent)
        shapes[f"1.mixer.experts.{expert}.down_proj"] = (latent, config.moe_intermediate_size)
    if config.moe_latent_size:
        shapes["1.mixer.fc1_latent_proj"], shapes["1.mixer.fc2_latent_proj"] = (latent, hidden), (hidden, latent)
    weights = {f"mtp.layers.{name}.weight": (torch.randn(shape, generator=generator) / math.sqrt(shape[-1])).to(dtype)
               for name, shape in shapes.items()}
    for name in ("0.enorm", "0.hnorm", "0.norm", "1.norm", "1.final_layernorm"):
        weights[f"mtp.layers.{name}.weight"] = torch.ones(hidden, dtype=dtype)
    weights["mtp.layers.1.mixer.gate.e_score_correction_bias"] = torch.zeros(config.n_routed_experts)
    return weights
