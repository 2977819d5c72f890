"""Chats that an instruct model writes by itself, prompts and answers, to teach a small one with.

Behind the beginning of a user's turn, and nothing else, a model that was made for chats writes a
question (https://arxiv.org/abs/2406.08464, Magpie); behind that, its answer.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, set_seed

from fedhlm_app.models.load import load_llm
from fedhlm_app.models.small import end_tokens
from fedhlm_app.models.sources import PairError
from fedhlm_app.models.vocabulary import load_tokenizer

_BATCH = 64
_PROMPT, _ANSWER = 80, 200
"""Most tokens of either; a prompt that does not end within them is left out."""

_PLACE = "\u2402"
"""Stands for a prompt in the template; no template has it."""

_DRAWN = {"do_sample": True, "top_k": 50, "top_p": 1.0, "cache_implementation": "static"}
_HEAT_OF_PROMPTS, _HEAT_OF_ANSWERS = 1.0, 0.7
"""Temperatures: prompts are to be many different ones, answers the ones that are given."""


def write_chats(
    llm: str,
    tokens: int,
    out: Path,
    seed: int = 1,
    listen: Callable[[int, int], None] = lambda done, of: None,
    bfloat16: bool = True,
) -> tuple[int, int]:
    """Write a file of chats.

    Parameters
    ----------
    llm : str
        A model that was made for chats, see :func:`fedhlm_app.models.load.load_llm`.
    tokens : int
        Tokens of answers to write, at least.
    out : Path
        A .jsonl file with a column ``messages``; interrupted, it has the chats so far.
    seed : int
        Of the draws, 0 or more.
    listen : callable
        Told how many tokens of how many are written.
    bfloat16 : bool
        Whether the model computes in bfloat16.

    Returns
    -------
    tuple of int
        Chats, and tokens of their answers.

    Raises
    ------
    PairError
        If the model cannot be loaded or has no chat template, or `out` is no new .jsonl file.
    """
    if out.suffix != ".jsonl":
        raise PairError(f"--out {out}: must be a .jsonl file")
    if out.exists() or not out.absolute().parent.is_dir():
        raise PairError(f"--out {out}: must be a new file in a folder that is there")
    tokenizer = load_tokenizer(llm)
    before, behind = _turns(tokenizer, llm)
    model: Any = copy.deepcopy(load_llm(llm))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    if not end_tokens(model):
        raise PairError(
            f"llm {llm!r}: names no token that ends a turn; generation_config.json does"
        )
    model.to(device, torch.bfloat16 if bfloat16 else torch.float32)
    set_seed(seed)
    chats = written = 0
    partial = out.with_name(f".{out.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            while written < tokens:
                listen(written, tokens)
                for prompt, answer, length in _batch(model, tokenizer, before, behind):
                    messages = [
                        {"role": "user", "content": prompt},
                        {"role": "assistant", "content": answer},
                    ]
                    file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
                    chats, written = chats + 1, written + length
    finally:
        # Each chat is whole: what was written before Ctrl-C is worth its time.
        if chats:
            partial.replace(out)
        else:
            partial.unlink(missing_ok=True)
    listen(written, tokens)
    return chats, written


def _turns(tokenizer: PreTrainedTokenizerBase, llm: str) -> tuple[str, str]:
    """What a chat's template writes before a prompt, and between it and the answer."""
    if not tokenizer.chat_template:
        raise PairError(f"llm {llm!r}: has no chat template; allowed are models made for chats")
    try:
        asked = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": _PLACE}], add_generation_prompt=True, tokenize=False
            )
        )
    except TemplateError as error:
        raise PairError(f"llm {llm!r}: its chat template refuses a prompt: {error}") from None
    before, place, behind = asked.partition(_PLACE)
    if not place:
        raise PairError(f"llm {llm!r}: its chat template does not write the prompt as it is")
    return before, behind


def _batch(
    model: Any, tokenizer: PreTrainedTokenizerBase, before: str, behind: str
) -> Iterator[tuple[str, str, int]]:
    """Prompts, their answers, and the answers' tokens; those that have both."""
    asked = _continued(model, tokenizer, [before] * _BATCH, _PROMPT, _HEAT_OF_PROMPTS)
    prompts = [text for text, ended, _ in asked if ended and text]
    if not prompts:
        return
    texts = [before + prompt + behind for prompt in prompts]
    answers = _continued(model, tokenizer, texts, _ANSWER, _HEAT_OF_ANSWERS)
    for prompt, (answer, _, length) in zip(prompts, answers, strict=True):
        if answer:
            yield prompt, answer, length


def _continued(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: list[str], most: int, heat: float
) -> list[tuple[str, bool, int]]:
    """What follows each text, whether its turn ended, and its tokens."""
    ends = sorted(end_tokens(model))
    read = tokenizer(texts, add_special_tokens=False)["input_ids"]
    longest, pad = max(map(len, read)), ends[0]
    rows = torch.tensor([[pad] * (longest - len(one)) + one for one in read])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in read])
    with torch.inference_mode():
        found = model.generate(
            rows.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=most,
            temperature=heat,
            eos_token_id=ends,
            pad_token_id=pad,
            **_DRAWN,
        )[:, longest:].tolist()
    told = []
    for tokens in found:
        at = next((at for at, token in enumerate(tokens) if token in ends), None)
        text = str(tokenizer.decode(tokens[:at], skip_special_tokens=True)).strip()
        told.append((text, at is not None, len(tokens[:at])))
    return told
