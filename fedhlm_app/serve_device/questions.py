"""What programs ask for, in the words of OpenAI's API: read, and refused by name."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fedhlm_app.client.prompted import Messages
from fedhlm_app.serve_device.refused import Refused, shown
from fedhlm_app.settings import Settings

MODEL = "fedhlm"
"""The one model there is: the pair, with its policy."""

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "modalities": (["text"],),
    "store": (False,),
}
"""Fields that are read where they ask for nothing, and what they may say; null in any case."""

_ABOUT = ("user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier")
"""Fields about the caller, which change no text."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Part(_Strict):
    type: Literal["text"]
    text: str


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]
    name: str | None = None


_Stop = Annotated[str, StringConstraints(min_length=1)]

_ALLOWED = {
    "prompt": "one text, or a list of one",
    "stop": "a text of at least one character, or a list of up to 16",
}
"""What a field of several types may be, where the reasons for each say less."""


class _Body(_Strict):
    model: str = MODEL
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class _Completion(_Body):
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None


class _Chat(_Body):
    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None


class Question:
    """A request for a text.

    Parameters
    ----------
    body : bytes
        JSON.
    chat : bool
        Of `/v1/chat/completions` rather than `/v1/completions`.
    settings : Settings
        Those of the device: how it decodes cannot be asked for.

    Attributes
    ----------
    prompt : str or list of dict
        Text to continue, or the messages of a chat.
    most : int or None
        Most new tokens, where it is asked for.
    seed : int or None
        Keys random draws.
    stop : list of str
        See `StopSequences`.
    stream, usage, logprobs : bool
        What the answer is to be like.

    Raises
    ------
    Refused
        Naming the field, its value and what is allowed.
    """

    def __init__(self, body: bytes, chat: bool, settings: Settings) -> None:
        given = _fields(body)
        try:
            found = (_Chat if chat else _Completion).model_validate(given)
        except ValidationError as error:
            raise _named(error, given) from None
        if found.model != MODEL:
            raise unknown_model(found.model)
        _check_sampling(found, settings)
        self.chat = chat
        self.most = found.max_tokens
        self.prompt: str | Messages
        if isinstance(found, _Chat):
            self.prompt = [{"role": one.role, "content": _text(one)} for one in found.messages]
            self.most = found.max_completion_tokens or self.most
            self.logprobs = bool(found.logprobs)
        else:
            assert isinstance(found, _Completion)
            self.prompt = found.prompt if isinstance(found.prompt, str) else found.prompt[0]
            self.logprobs = found.logprobs is not None
        self.seed = found.seed
        self.stop = [found.stop] if isinstance(found.stop, str) else found.stop or []
        self.stream = bool(found.stream)
        self.usage = found.stream_options is not None and found.stream_options.include_usage


def unknown_model(name: str) -> Refused:
    """The refusal of a model that is not here."""
    message = f"model = {shown(name)}: is not here; allowed: {MODEL!r}"
    return Refused(404, message, "model", "model_not_found")


def _fields(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"body: no JSON ({error})") from None
    if not isinstance(given, dict):
        raise Refused(400, f"body = {shown(given)}: must be a JSON object")
    for name, allowed in _NEUTRAL.items():
        value = given.pop(name, None)
        if value is not None and value not in allowed:
            words = " or ".join(map(shown, allowed))
            message = f"{name} = {shown(value)}: a device does not do that; allowed: {words}"
            raise Refused(400, message, name, "unsupported_value")
    return {name: value for name, value in given.items() if name not in _ABOUT}


def _named(error: ValidationError, given: dict[str, Any]) -> Refused:
    """The first thing that is wrong, by its field."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    if first["type"] == "missing":
        return Refused(400, f"{name}: is missing", name, "missing_required_parameter")
    if first["type"] == "extra_forbidden":
        message = f"{name} = {shown(first['input'])}: a device does not know this field"
        return Refused(400, message, name, "unknown_parameter")
    if name in _ALLOWED:
        message = f"{name} = {shown(given[name])}: must be {_ALLOWED[name]}"
        return Refused(400, message, name, "invalid_value")
    # A field that may be of several types fails once for each of them.
    of_field = [one for one in error.errors(include_url=False) if one["loc"][0] == name]
    why = " or ".join(dict.fromkeys(one["msg"][0].lower() + one["msg"][1:] for one in of_field))
    return Refused(400, f"{name} = {shown(first['input'])}: {why}", name, "invalid_value")


def _check_sampling(found: _Body, settings: Settings) -> None:
    """Refuse what would draw otherwise than the device's threshold was learned for."""
    greedy = settings.decoding == "greedy"
    temperature = 0.0 if greedy else settings.temperature
    allowed = {"temperature": temperature} | ({} if greedy else {"top_p": settings.top_p})
    for name, value in allowed.items():
        asked = getattr(found, name)
        if asked is not None and asked != value:
            message = (
                f"{name} = {asked:g}: this device decodes {settings.decoding}, as its threshold "
                f"was learned for; allowed: {value:g}, or none"
            )
            raise Refused(400, message, name, "unsupported_value")


def _text(message: _Message) -> str:
    content = message.content
    return content if isinstance(content, str) else "".join(part.text for part in content)
