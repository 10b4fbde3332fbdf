"""Small architectures for tests of the model and the engine."""

from stagecraft.model.config import Architecture

LAPTOP = dict(  # noqa: C408
    hybrid_override_pattern="M*EM*E", hidden_size=128, vocab_size=2048, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    mamba_num_heads=8, mamba_head_dim=32, ssm_state_size=16, n_groups=1, conv_kernel=4, chunk_size=32, n_routed_experts=32,
    num_experts_per_tok=2, moe_intermediate_size=128, moe_latent_size=64, moe_shared_expert_intermediate_size=256,
    routed_scaling_factor=2.5, max_position_embeddings=2048, initializer_range=0.02)


def architecture(**changes) -> Architecture:
    """The laptop's shapes, changed."""
    return Architecture(**{**LAPTOP, **changes})


def tiny(**changes) -> Architecture:
    """Shapes as small as they get with every kind of layer."""
    return architecture(**{"hidden_size": 64, "vocab_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "mamba_num_heads": 4,
                           "mamba_head_dim": 16, "chunk_size": 8, "n_groups": 2, "n_routed_experts": 8, "moe_intermediate_size": 32,
                           "moe_latent_size": 32, "moe_shared_expert_intermediate_size": 64, "hybrid_override_pattern": "M*E",
                           "initializer_range": 0.1, **changes})
