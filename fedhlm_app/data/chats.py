"""Chats of a dataset: rows of messages, which a tokenizer's chat template makes texts of.

A chat is kept as its messages, since templates differ: what stands before its last answer is the
prompt, as a device would be asked, and that answer is what there is to foretell.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import TemplateError

from fedhlm_app.data.files import DataError
from fedhlm_app.data.items import Items
from fedhlm_app.data.messages import ANSWERING
from fedhlm_app.models.vocabulary import load_tokenizer, one_tokenizer
from fedhlm_app.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TRIED = 64
"""Chats whose prompts are measured before a run."""


@dataclass(frozen=True)
class Encoded:
    """An item as tokens.

    Attributes
    ----------
    start : list of int
        What is given: the start token of a text, if its tokenizer has one; the prompt of a chat.
    text : list of int
        What follows: the text; the last answer of a chat, to the end of its turn, or nothing where
        it ends with a question.
    """

    start: list[int]
    text: list[int]


def encoded(
    items: Items,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[int] | np.ndarray | None = None,
) -> list[Encoded]:
    """Turn items into tokens.

    Parameters
    ----------
    items : Items
        Texts or chats.
    tokenizer : PreTrainedTokenizerBase
        Of the model pair.
    rows : sequence of int
        Which ones, in the order wanted; all by default.

    Returns
    -------
    list of Encoded
        One an item.

    Raises
    ------
    DataError
        For chats, where the tokenizer has no chat template or its template refuses one.
    """
    texts = items.texts(rows)
    if not texts:
        return []
    if not items.chat:
        start = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
        return [Encoded(start, text) for text in _tokens(tokenizer, texts)]
    if not tokenizer.chat_template:
        raise DataError(
            f"dataset = {items.name} has chats, and the tokenizer of the models has no chat "
            "template; give models that were made for chats, or texts"
        )
    chats = [_templated(json.loads(text), tokenizer, items.name) for text in texts]
    # Apart, as on a device: no token spans the place where the answer begins.
    starts = _tokens(tokenizer, [start for start, _ in chats])
    answers = _tokens(tokenizer, [answer for _, answer in chats])
    return [Encoded(start, answer) for start, answer in zip(starts, answers, strict=True)]


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return found


def _templated(
    messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, name: str
) -> tuple[str, str]:
    """Prompt and last answer of a chat, as its template writes them."""
    asked = messages[:-1] if messages[-1]["role"] == ANSWERING else messages
    try:
        prompt = str(
            tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        )
        if asked is messages:
            return prompt, ""
        whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TemplateError as error:
        raise DataError(f"dataset = {name}: the chat template refuses a chat: {error}") from None
    if whole.startswith(prompt):
        return prompt, whole[len(prompt) :].rstrip()
    # Some templates write an answer otherwise once it is past (without its reasoning, say).
    return prompt, messages[-1]["content"] + str(tokenizer.eos_token or "")


def check_answers(items: Items) -> None:
    """Refuse chats of which one has no answer at its end, where answers are what is needed.

    Raises
    ------
    DataError
        Naming the chat.
    """
    for row, text in enumerate(items.texts() if items.chat else ()):
        if (role := json.loads(text)[-1]["role"]) != ANSWERING:
            raise DataError(
                f"chat {row} of {items.name} ends with a message of '{role}', and an answer is "
                "needed; only workload=generate takes questions alone"
            )


def check_prompts(
    items: Items, tokenizer: PreTrainedTokenizerBase, prompt_tokens: int, workload: str
) -> None:
    """Refuse chats whose prompts would all lose their beginning, and such without an answer.

    Parameters
    ----------
    items : Items
        Texts, which may be cut, or chats.
    tokenizer : PreTrainedTokenizerBase
        Of the model pair.
    prompt_tokens : int
        Longest prompt.
    workload : str
        All but ``generate`` need an answer.

    Raises
    ------
    DataError
        Naming the setting and what would do.
    """
    if not items.chat:
        return
    if workload != "generate":
        check_answers(items)
    made = encoded(items, tokenizer, np.arange(min(_TRIED, len(items))))
    lengths = [len(one.start) for one in made]
    if min(lengths) > prompt_tokens:
        raise DataError(
            f"prompt-tokens = {prompt_tokens}: the prompts of {items.name} have {min(lengths)} to "
            f"{max(lengths)} tokens in the chat template; a longer one loses its beginning: set "
            f"prompt-tokens={max(lengths)}"
        )


def check_chats(items: Items, settings: Settings, workload: str) -> None:
    """Refuse chats that the models of the settings, or the work, have no use for.

    Raises
    ------
    DataError
        As `check_prompts`, or where SLM and LLM have no chat template in common.
    """
    if not items.chat:
        return
    slm, llm = settings.slm, settings.llm
    if not (settings.llm_address or one_tokenizer(slm, llm)):
        raise DataError(
            f"dataset = {items.name} has chats, and slm {slm!r} and llm {llm!r} have different "
            "tokenizers, so no chat template in common; give texts, or models with one tokenizer"
        )
    check_prompts(items, load_tokenizer(slm), settings.prompt_tokens, workload)
