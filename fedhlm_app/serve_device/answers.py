"""Texts in the shape of OpenAI's API; what it has no field for is under `fedhlm`."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from fedhlm_app.client.prompted import Continuation, Token
from fedhlm_app.serve_device.questions import MODEL, Question


class Answer:
    """The answer to a question, whole or in chunks.

    Parameters
    ----------
    question : Question
        What was asked.
    prompt_tokens : int
        Length of its prompt.
    """

    def __init__(self, question: Question, prompt_tokens: int) -> None:
        self._question = question
        self._prompt_tokens = prompt_tokens
        kind = "chat.completion" if question.chat else "text_completion"
        self._head: dict[str, Any] = {
            "id": f"{'chatcmpl' if question.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind + (".chunk" if question.chat and question.stream else ""),
            "created": int(time.time()),
            "model": MODEL,
        }
        self._offset = 0

    def whole(self, tokens: Sequence[Token], text: Continuation, finish: str) -> dict[str, Any]:
        """The answer in one piece.

        Parameters
        ----------
        tokens : sequence of Token
            Those that are shown.
        text : Continuation
            What was written.
        finish : {"stop", "length"}
            Why it ended.
        """
        content = "".join(token.text for token in tokens)
        message = {"role": "assistant", "content": content, "refusal": None}
        said = {"message": message} if self._question.chat else {"text": content}
        told = {**_account(text), "tokens": [token.as_json() for token in tokens]}
        return {
            **self._head,
            "choices": [self._choice(said, tokens, finish)],
            "usage": self._usage(text),
            "fedhlm": told,
        }

    def begin(self) -> list[str]:
        """Events before the first token."""
        if not self._question.chat:
            return []
        return [self._event(self._choice({"delta": {"role": "assistant", "content": ""}}, []))]

    def chunk(self, tokens: Sequence[Token]) -> str:
        """An event with further tokens."""
        content = "".join(token.text for token in tokens)
        said = {"delta": {"content": content}} if self._question.chat else {"text": content}
        told = {"tokens": [token.as_json() for token in tokens]}
        return self._event(self._choice(said, tokens), fedhlm=told)

    def end(self, text: Continuation, finish: str) -> list[str]:
        """Events behind the last token."""
        said: dict[str, Any] = {"delta": {}} if self._question.chat else {"text": ""}
        events = [self._event(self._choice(said, [], finish), fedhlm=_account(text))]
        if self._question.usage:
            events.append(self._event(usage=self._usage(text)))
        return [*events, "data: [DONE]\n\n"]

    def _event(self, *choices: dict[str, Any], **further: object) -> str:
        return event({**self._head, "choices": choices, **further})

    def _choice(
        self, said: dict[str, Any], tokens: Sequence[Token], finish: str | None = None
    ) -> dict[str, Any]:
        logprobs = self._logprobs(tokens) if self._question.logprobs else None
        return {"index": 0, **said, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """The small model's, of the tokens that are its drafts; null for others."""
        known = [None if one.probability is None else math.log(one.probability) for one in tokens]
        if self._question.chat:
            content = [
                {
                    "token": token.text,
                    "logprob": logprob,
                    "bytes": list(token.text.encode()),
                    "top_logprobs": [],
                }
                for token, logprob in zip(tokens, known, strict=True)
            ]
            return {"content": content, "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.text)
        words = [token.text for token in tokens]
        return {
            "tokens": words,
            "token_logprobs": known,
            "top_logprobs": None,
            "text_offset": offsets,
        }

    def _usage(self, text: Continuation) -> dict[str, int]:
        written = len(text.tokens)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self._prompt_tokens + written,
        }


def event(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content)}\n\n"


def _account(text: Continuation) -> dict[str, Any]:
    """Stages, bytes and policy of a text."""
    told = text.as_json()
    return {name: told[name] for name in ("stages", "bytes", "threshold", "round")}
