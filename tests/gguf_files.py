"""Models in GGUF files, made with the package that llama.cpp's converter uses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<|im_start|>"
TEXTS = ["the cat sat on the mat in 2004", "a dog ran  1234 times", "half of 10 is 5"] * 9


def byte_level():
    """A tokenizer as SmolLM2's: numbers digit by digit."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(split)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIALS, initial_alphabet=alphabet),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


def write(path, model, tokenizer):
    """A Llama in float32, as llama.cpp's converter writes it: no row is without a token."""
    gguf = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    heads = config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // heads)
    writer.add_vocab_size(config.vocab_size)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocab = sorted(backend["vocab"], key=backend["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    padding = [f"[PAD{row}]" for row in range(len(vocab), config.vocab_size)]
    writer.add_token_list([*vocab, *padding])
    kinds = [3 if token in special else 1 for token in vocab]
    writer.add_token_types([*kinds, *(5 for _ in padding)])
    writer.add_token_merges([" ".join(pair) for pair in backend["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        array = weight.detach().numpy()
        if "q_proj" in name or "k_proj" in name:
            halves = array.reshape(heads, 2, -1, array.shape[1])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        base = name.removesuffix(".weight")
        writer.add_tensor(names.get_name(base) + ".weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
