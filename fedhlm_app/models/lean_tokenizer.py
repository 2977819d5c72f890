"""A tokenizer from its own file, read without Transformers, for devices without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer


class LeanTokenizer:
    """What a device that writes texts asks of a tokenizer of Transformers, under the same names.

    Parameters
    ----------
    folder : Path
        With `tokenizer.json`; `tokenizer_config.json` names starts and ends of texts, and it or
        `chat_template.jinja` has the chat template.

    Attributes
    ----------
    bos_token_id : int or None
        Token that starts a text.
    chat_template : str or None
        In Jinja.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        file = folder / "tokenizer_config.json"
        config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        self._special = {
            name: token["content"] if isinstance(token, dict) else token
            for name in ("bos_token", "eos_token")
            if (token := config.get(name)) is not None
        }
        bos = self._special.get("bos_token")
        self.bos_token_id = None if bos is None else self._tokenizer.token_to_id(bos)
        self.chat_template: str | None = config.get("chat_template")
        if (template := folder / "chat_template.jinja").is_file():
            self.chat_template = template.read_text("utf-8")

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        """Token ids of a text."""
        found = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": found.ids}

    def decode(self, tokens: list[int], *, skip_special_tokens: bool, **_: Any) -> str:
        """Text of token ids; spaces are never cleaned up."""
        return self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def get_vocab(self) -> dict[str, int]:
        """Ids by token, special ones among them."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool
    ) -> str:
        """A chat as text.

        Raises
        ------
        TemplateError
            When the template refuses it.
        """
        del tokenize
        jinja = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        jinja.globals["raise_exception"] = _refuse
        return jinja.from_string(self.chat_template or "").render(
            messages=messages, add_generation_prompt=add_generation_prompt, **self._special
        )


def _refuse(message: str) -> None:
    raise TemplateError(message)
