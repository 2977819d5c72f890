"""The built-in pair as one for chats, and a file of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from fedhlm_app.models.load import load_pair, save_model

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|eos|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SAID = (
    ("Who won the game?", "The home team won by two goals."),
    (
        "How are shares doing today, in London and elsewhere?",
        "Shares fell.\nOil rose <b>sharply</b>.",
    ),
    ("What is new in space?", "A probe reached Mars on Monday, the agency said."),
    ("Is there peace?", "Talks go on."),
)


def save_pair(folder: Path, template: str | None = TEMPLATE) -> tuple[str, str]:
    """Write the built-in pair with a chat template; its folders."""
    pair = load_pair()
    tokenizer = copy.deepcopy(pair.tokenizer)
    tokenizer.chat_template = template
    save_model(pair.slm, tokenizer, folder / "slm")
    save_model(pair.llm, tokenizer, folder / "llm")
    return str(folder / "slm"), str(folder / "llm")


def messages(asked: str, answered: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def save_chats(path: Path, times: int = 1, **columns: str) -> str:
    """Write a file of chats."""
    rows = [{"messages": messages(*one), **columns} for one in SAID * times]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)
