"""The pair's tokenizer: byte-level BPE with special tokens for topic and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fedhlm_app.models.vocabulary import label_token

PAD, BOS, EOS, TOPIC = "<|pad|>", "<|bos|>", "<|eos|>", "<|topic|>"
"""Ids 0, 1, 2 and 3; one token per label follows."""


def train_tokenizer(
    texts: Sequence[str], label_names: Sequence[str], vocabulary: int, folder: Path
) -> PreTrainedTokenizerBase:
    """Train a tokenizer and save it as an ordinary Transformers one.

    Parameters
    ----------
    texts : sequence of str
        Clean training texts.
    label_names : sequence of str
        One special token each, ``<|NAME|>``.
    vocabulary : int
        Tokens in all: special ones, 256 bytes, merges.
    folder : Path
        Where ``tokenizer.json`` and ``tokenizer_config.json`` go.

    Returns
    -------
    PreTrainedTokenizerBase
        Adds no special tokens by itself.

    Raises
    ------
    ValueError
        If ``vocabulary`` has no room for specials and bytes.
    """
    specials = [PAD, BOS, EOS, TOPIC, *(label_token(name) for name in label_names)]
    if vocabulary < 256 + len(specials):
        raise ValueError(
            f"vocabulary = {vocabulary} is not allowed; 256 bytes and {len(specials)} special "
            f"tokens need at least {256 + len(specials)}"
        )
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    fast: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerBase = fast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=specials[3:],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
