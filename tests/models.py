"""Small random models, for tests that must hold for any architecture."""

from __future__ import annotations

import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB = 64
ARCHITECTURES = ("llama", "qwen2", "gpt2", "gemma")


def random_model(
    architecture: str, seed: int = 0, size: int = 32, vocab: int = VOCAB
) -> PreTrainedModel:
    """A tiny model with random weights large enough for clear-cut predictions."""
    torch.manual_seed(seed)
    common = {
        "vocab_size": vocab,
        "hidden_size": size,
        "intermediate_size": 2 * size,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.5,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=2))
    elif architecture == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**common, num_key_value_heads=2))
    elif architecture == "gemma":
        model = GemmaForCausalLM(GemmaConfig(**common, num_key_value_heads=2, head_dim=size // 4))
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab,
                n_embd=size,
                n_layer=2,
                n_head=4,
                n_positions=64,
                initializer_range=0.5,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=None,
            )
        )
    return model.eval()
