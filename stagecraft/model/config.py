"""The architecture of a Nemotron-H model: its shapes, named as in the Hugging Face config, and what makes them impossible."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from stagecraft.contract.bounded import AboveZero, Count, Positive
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import params

# Head sizes that vLLM's CPU and GPU attention kernels serve.
SERVABLE_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 192, 256)
LAYER_TYPES = {"M": "Mamba-2", "*": "attention", "E": "mixture of experts"}


@params
class Architecture:
    """Shapes of the model. Sizes are in elements; the defaults are those that no published model of the family changes.

    `moe_latent_size` None leaves LatentMoE's projections out: the experts work at `hidden_size`.
    """

    hybrid_override_pattern: str
    hidden_size: Positive
    vocab_size: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    head_dim: Positive
    mamba_num_heads: Positive
    mamba_head_dim: Positive
    ssm_state_size: Positive
    n_groups: Positive
    conv_kernel: Positive = 4
    chunk_size: Positive = 128
    n_routed_experts: Positive
    num_experts_per_tok: Positive
    moe_intermediate_size: Positive
    moe_latent_size: Positive | None
    moe_shared_expert_intermediate_size: Positive
    routed_scaling_factor: AboveZero = 5.0
    mtp_hybrid_override_pattern: str = "*E"
    num_nextn_predict_layers: Count = 1
    max_position_embeddings: Positive = 262144
    initializer_range: AboveZero = 0.014
    norm_eps: AboveZero = 1e-5

    def __post_init__(self) -> None:
        for name in ("hybrid_override_pattern", "mtp_hybrid_override_pattern"):
            pattern = getattr(self, name)
            for letter in pattern:
                if letter not in LAYER_TYPES:
                    known = ", ".join(f"{key} ({value})" for key, value in LAYER_TYPES.items())
                    raise ValueError(f"{name} {pattern!r}: unknown layer letter {letter!r}; known are {known}")
        if not self.hybrid_override_pattern:
            raise ValueError("hybrid_override_pattern is empty: the model needs at least one layer")
        if self.num_nextn_predict_layers and self.mtp_hybrid_override_pattern != "*E":
            raise ValueError("mtp_hybrid_override_pattern must be '*E': the server reads no other MTP block")
        if self.num_nextn_predict_layers > 1:
            raise ValueError(f"num_nextn_predict_layers {self.num_nextn_predict_layers} must be 0 or 1: all mtp_depths share one block, "
                             "and the server reads no more")
        if self.n_routed_experts < 2:
            raise ValueError("n_routed_experts must be at least 2: transformers, by which the model is quantised, ranks no single expert")
        if self.n_routed_experts < self.num_experts_per_tok:
            raise ValueError(f"num_experts_per_tok {self.num_experts_per_tok} is more than n_routed_experts {self.n_routed_experts}")
        if self.head_dim not in SERVABLE_HEAD_DIMS:
            raise ValueError(f"head_dim {self.head_dim} cannot be served by vLLM; choose one of {', '.join(map(str, SERVABLE_HEAD_DIMS))}")
        for part, whole in (("num_key_value_heads", "num_attention_heads"), ("n_groups", "mamba_num_heads")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"{whole} {getattr(self, whole)} is no multiple of {part} {getattr(self, part)}")

    def refuse_longer(self, tokens: int, where: str) -> None:
        """Refuse sequences that vLLM will not take of this model, though it has no embeddings of positions.

        Raises:
            UserError: `where` has more tokens than max_position_embeddings.
        """
        if tokens > self.max_position_embeddings:
            raise UserError(f"sequences of {tokens} tokens, and the server takes {self.max_position_embeddings} of this model", where=where,
                            mend="lower it, or raise pretrain.architecture.max_position_embeddings")

    def to_hf(self) -> dict[str, Any]:
        """The content of config.json: what transformers and vLLM need to build the model, finite numbers only."""
        layer_types = {"M": "linear_attention", "*": "full_attention", "E": "moe"}
        return {
            **asdict(self),
            "model_type": "nemotron_h",
            "architectures": ["NemotronHForCausalLM"],
            "layers_block_type": [layer_types[letter] for letter in self.hybrid_override_pattern],
            "mtp_layers_block_type": [layer_types[letter] for letter in self.mtp_hybrid_override_pattern],
            "num_hidden_layers": len(self.hybrid_override_pattern),
            "intermediate_size": self.moe_shared_expert_intermediate_size,
            "layer_norm_epsilon": self.norm_eps,
            "expand": 2,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": self.num_experts_per_tok > 1,  # of a token's one expert megatron-core leaves the weight as it is
            "mlp_hidden_act": "relu2",
            "mamba_hidden_act": "silu",
            "use_conv_bias": True,
            "use_bias": False,
            "mlp_bias": False,
            "attention_bias": False,
            "mamba_proj_bias": False,
            "tie_word_embeddings": False,
            # Megatron and vLLM do not clamp the time step; transformers clamps at time_step_min, whose logarithm it takes.
            "time_step_min": 1e-12,
            "time_step_limit": [0.0, 1e30],
            "residual_in_fp32": False,
            "use_cache": True,
        }

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> Architecture:
        """Read the shapes back from a config.json."""
        return cls(**{field.name: config[field.name] for field in fields(cls) if field.name in config})
