"""Small random models of causal families, for trying how each is read.

Weights are drawn so that every layer matters: with the small ones of a usual initialisation, the
logits of a random model hardly depend on the context, and a wrong reading would look right.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 64
POSITIONS = 96
_LAYERS = 4

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_GPT = {"n_embd": 32, "n_layer": _LAYERS, "n_head": 4, "n_positions": POSITIONS}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA = {
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "use_mamba_kernels": False,
}
_WINDOW = {"sliding_window": 24}
_HALF = ["linear_attention", "full_attention"] * (_LAYERS // 2)
_LOCAL = ["sliding_attention", "full_attention"] * (_LAYERS // 2)

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Apertus": ("apertus", _GROUPED),
    "Bamba": ("bamba", {**_GROUPED, **_MAMBA, "attn_layer_indices": [1, 3]}),
    "BERT (reads both ways)": ("bert", {}),
    "BioGPT": ("biogpt", {}),
    "BLOOM": ("bloom", {"n_layer": _LAYERS, "n_head": 4}),
    "CodeGen": ("codegen", {**_GPT, "n_ctx": POSITIONS, "rotary_dim": 4}),
    "Cohere": ("cohere", _GROUPED),
    "Cohere 2": ("cohere2", {**_GROUPED, **_WINDOW, "layer_types": _LOCAL}),
    "DeepSeek-V2": (
        "deepseek_v2",
        {
            **_LATENT,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "num_key_value_heads": 4,
        },
    ),
    "DeepSeek-V3": (
        "deepseek_v3",
        {
            **_LATENT,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "num_key_value_heads": 4,
        },
    ),
    "ERNIE 4.5": ("ernie4_5", _GROUPED),
    "Falcon, ALiBi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "Falcon, rotary": ("falcon", {"alibi": False, "new_decoder_architecture": False}),
    "Falcon-H1": ("falcon_h1", {**_GROUPED, **_MAMBA, "mamba_d_ssm": 64}),
    "Gemma": ("gemma", _GROUPED),
    "Gemma 2": ("gemma2", {**_GROUPED, **_WINDOW, "query_pre_attn_scalar": 8}),
    "Gemma 3": (
        "gemma3_text",
        {**_GROUPED, **_WINDOW, "query_pre_attn_scalar": 8, "layer_types": _LOCAL},
    ),
    "GLM": ("glm", _GROUPED),
    "GPT-2": ("gpt2", _GPT),
    "GPT-BigCode": ("gpt_bigcode", _GPT),
    "GPT-J": ("gptj", {**_GPT, "rotary_dim": 4}),
    "GPT-Neo": (
        "gpt_neo",
        {
            "num_layers": _LAYERS,
            "num_heads": 4,
            "window_size": 16,
            "attention_types": [[["global", "local"], _LAYERS // 2]],
        },
    ),
    "GPT-NeoX": ("gpt_neox", {}),
    "GPT-OSS": ("gpt_oss", {**_GROUPED, **_EXPERTS, **_WINDOW, "layer_types": _LOCAL}),
    "Granite": ("granite", _GROUPED),
    "Helium": ("helium", _GROUPED),
    "Jamba": (
        "jamba",
        {
            **_GROUPED,
            **_MAMBA,
            **_EXPERTS,
            "mamba_dt_rank": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
    ),
    "LFM2": ("lfm2", {**_GROUPED, "layer_types": ["conv", "full_attention"] * (_LAYERS // 2)}),
    "Llama": ("llama", _GROUPED),
    "Llama 4": (
        "llama4_text",
        {
            **_GROUPED,
            **_EXPERTS,
            "intermediate_size_mlp": 48,
            "attention_chunk_size": 24,
            "interleave_moe_layer_step": 2,
            "no_rope_layers": [1, 0] * (_LAYERS // 2),
        },
    ),
    "LongCat-Flash": (
        "longcat_flash",
        {
            **_LATENT,
            "num_layers": 2,
            "ffn_hidden_size": 48,
            "expert_ffn_hidden_size": 16,
            "n_routed_experts": 4,
            "zero_expert_num": 2,
            "moe_topk": 2,
            "num_key_value_heads": 4,
        },
    ),
    "Mamba": ("mamba", {"state_size": 8}),
    "Mamba 2": (
        "mamba2",
        {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    ),
    "MiniMax": (
        "minimax",
        {**_GROUPED, **_EXPERTS, "block_size": 16, "layer_types": _HALF},
    ),
    "Mistral, sliding window": ("mistral", {**_GROUPED, **_WINDOW}),
    "Mixtral": ("mixtral", {**_GROUPED, **_EXPERTS}),
    "MPT": ("mpt", {"d_model": 32, "n_layers": _LAYERS, "n_heads": 4, "max_seq_len": POSITIONS}),
    "Nemotron": ("nemotron", _GROUPED),
    "OLMo": ("olmo", {"num_key_value_heads": 2}),
    "OLMo 2": ("olmo2", {"num_key_value_heads": 2}),
    "OLMo 3": ("olmo3", {"num_key_value_heads": 2, **_WINDOW, "layer_types": _LOCAL}),
    "OLMoE": ("olmoe", {"num_key_value_heads": 2, **_EXPERTS}),
    "OpenAI-GPT": ("openai-gpt", _GPT),
    "OPT": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "Persimmon": ("persimmon", {}),
    "Phi": ("phi", {"num_key_value_heads": 2}),
    "Phi-3": ("phi3", {"num_key_value_heads": 2}),
    "Qwen 2": ("qwen2", {"num_key_value_heads": 2}),
    "Qwen 2 MoE": (
        "qwen2_moe",
        {
            "num_key_value_heads": 2,
            **_EXPERTS,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "Qwen 3": ("qwen3", _GROUPED),
    "Qwen 3 MoE": ("qwen3_moe", {**_GROUPED, **_EXPERTS, "moe_intermediate_size": 16}),
    "Qwen3-Next": (
        "qwen3_next",
        {
            **_GROUPED,
            **_EXPERTS,
            **_DELTA,
            "moe_intermediate_size": 16,
            "layer_types": _HALF,
            "shared_expert_intermediate_size": 16,
            "partial_rotary_factor": 0.5,
        },
    ),
    "RecurrentGemma": (
        "recurrent_gemma",
        {**_GROUPED, "lru_width": 32, "attention_window_size": 24},
    ),
    "RWKV": ("rwkv", {"attention_hidden_size": 32, "context_length": POSITIONS}),
    "SmolLM 3": ("smollm3", {"num_key_value_heads": 2}),
    "StableLM": ("stablelm", {"num_key_value_heads": 2}),
    "StarCoder 2": ("starcoder2", {"num_key_value_heads": 2}),
    "XGLM": ("xglm", {"d_model": 32, "ffn_dim": 48, "num_layers": _LAYERS, "attention_heads": 4}),
    "Zamba 2": (
        "zamba2",
        {
            **_MAMBA,
            "num_mem_blocks": 1,
            "n_mamba_heads": 8,
            "mamba_ngroups": 1,
            "chunk_size": 16,
            "num_key_value_heads": 4,
            "attention_head_dim": 16,
            "adapter_rank": 8,
            "use_shared_attention_adapter": False,
            "use_long_context": False,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "mamba_headdim": 8,
        },
    ),
}
"""Name of a family to its model type and what its configuration adds to the common one."""

# Rates and decays of recurrent layers have ranges of their own, which initialisation knows.
_KEPT = ("A_log", "dt_", ".D", "recurrent_param", "time_", "rg_lru", "slope")


def family_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A small random model of a family in `FAMILIES`, float32, in evaluation mode."""
    kind, own = FAMILIES[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**_COMMON, **own})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for label, weight in model.named_parameters():
            if weight.ndim >= 2 and not any(part in label for part in _KEPT):
                is_embedding = weight.ndim == 2 and weight.shape[0] in (VOCAB, POSITIONS)
                weight.normal_(0.0, 1.0 if is_embedding else 1.5 * weight.shape[-1] ** -0.5)
    model.train(False)
    return model
