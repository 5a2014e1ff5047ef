"""Configurations of tiny models of many families: mixtures of experts, and linear layers with unusual names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

from tests.tiny import VOCABULARY, WINDOW, tiny_config

_TOKENS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2, "vocab_size": VOCABULARY}
_SIZES: dict[str, Any] = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_LOCAL: dict[str, Any] = {**_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED: dict[str, Any] = {**_SIZES, "num_experts": 4, "num_experts_per_tok": 2}
_GRANITE: dict[str, Any] = {
    "logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2,
}  # fmt: skip
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2,
    "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
}  # fmt: skip
_FALCON: dict[str, Any] = {**_TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}

EXPERTS: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: transformers.MixtralConfig(**_LOCAL, router_jitter_noise=0.5),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **_ROUTED, moe_intermediate_size=16, shared_expert_intermediate_size=16
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**{**_ROUTED, "head_dim": 8}, moe_intermediate_size=16),
    "olmoe": lambda: transformers.OlmoeConfig(**_ROUTED),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(**{**_SIZES, **_LATENT}),
    "phimoe": lambda: transformers.PhimoeConfig(**_LOCAL),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **_LOCAL, head_dim=8, sliding_window=WINDOW, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    ),
    "granitemoe": lambda: transformers.GraniteMoeConfig(**_LOCAL, **_GRANITE),
}
DENSE: dict[str, Callable[[], Any]] = {
    "granite": lambda: transformers.GraniteConfig(**_SIZES, **_GRANITE),
    "cohere": lambda: transformers.CohereConfig(**_SIZES, logit_scale=0.25),
    "falcon": lambda: transformers.FalconConfig(**_FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon_alibi": lambda: transformers.FalconConfig(**_FALCON, alibi=True),
    "phi3": lambda: transformers.Phi3Config(**_SIZES),
    "olmo2": lambda: transformers.Olmo2Config(**_SIZES),
    **{family: (lambda family=family: tiny_config(family)) for family in ("gpt2", "gpt_neox", "gemma3")},
}
WITHOUT_CLASSIFIER = ("olmoe", "granite", "granitemoe", "cohere")  # transformers has no class for them
WITHOUT_SHARING = ("falcon_alibi",)


def attention_of(family: str) -> str:
    """An implementation that the family has."""
    return "eager" if family == "gpt_oss" else "sdpa"
