"""Tokenizers unlike the built-in byte-level BPE, trained on its news, with small random models."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedhlm_app.data.dataset import items_of
from tests.fedhlm_app.in_process import settings_of

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"


@lru_cache
def unigram() -> Tokenizer:
    """SentencePiece's kind: a space before the first word, bytes for what it has no piece of."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=700, special_tokens=[UNKNOWN, BEGIN, END], unk_token=UNKNOWN
    )
    made.train_from_iterator(_texts(), trainer)
    pieces = [tuple(one) for one in json.loads(made.to_str())["model"]["vocab"]]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    whole = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    whole.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    whole.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    whole.add_special_tokens([UNKNOWN, BEGIN, END])
    return whole


@lru_cache
def byte_level() -> Tokenizer:
    """GPT-2's kind, with fewer merges than the built-in one, and nothing that begins a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=[END], initial_alphabet=alphabet)
    made.train_from_iterator(_texts(), trainer)
    return made


@lru_cache
def word_pieces() -> Tokenizer:
    """BERT's kind: small letters, no spaces."""
    made = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=[UNKNOWN, END])
    made.train_from_iterator(_texts(), trainer)
    return made


KINDS = {"unigram": unigram, "byte-level": byte_level, "word-pieces": word_pieces}


def wrapped(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer as Transformers has it."""
    begin = {"bos_token": BEGIN, "unk_token": UNKNOWN} if kind == "unigram" else {}
    return PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), eos_token=END, **begin)


def save(kind: str, folder: Path, seed: int = 0, rows: int = 0) -> str:
    """A random model with such a tokenizer, in a folder, that writes no bytes of characters.

    It has `rows` logits, as many as tokens where none are given.
    """
    tokenizer = wrapped(kind)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.5,
        pad_token_id=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    pieces = enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    parts = [
        n
        for n, one in pieces
        if n < config.vocab_size and (one.startswith("<0x") or "\ufffd" in tokenizer.decode([n]))
    ]
    with torch.no_grad():
        model.lm_head.weight[parts] = 0.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _texts() -> list[str]:
    return items_of(settings_of()).texts(range(150))
