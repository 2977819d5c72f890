"""The large model of a pair, for devices whose small one may have another tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedhlm_app.hosting.backends import build_backend, check_backend
from fedhlm_app.models.sources import PairError
from fedhlm_app.models.vocabulary import (
    check_logits,
    load_tokenizer,
    one_tokenizer,
    vocabulary_size,
)
from fedhlm_app.settings import Settings, SettingsError

if TYPE_CHECKING:
    from servers.backend import Backend
    from servers.words import Words

PASSAGE = "The Bank's 3 clerks (2 of them new) said:\n\n  \"It's a U-turn!\"  Then they left."
"""What a tokenizer must give back as it is: case, marks, spaces and line ends."""


def check_pair(settings: Settings) -> None:
    """Refuse a backend that cannot serve the settings, or two models that text cannot join.

    Raises
    ------
    ValueError
        Naming the settings and what fits (`PairError`, `SettingsError`).
    """
    if not settings.llm_address:
        check_backend(settings)
    if one_tokenizer(settings.slm, settings.llm):
        check_logits(settings.slm, settings.llm)
    else:
        _check_text(settings)


def check_one_tokenizer(settings: Settings, what: str) -> None:
    """Refuse two models whose tokens are not the same, where that is needed.

    Parameters
    ----------
    settings : Settings
        Name the models.
    what : str
        What needs it, in the words of the message.

    Raises
    ------
    PairError
        Naming both models, and which commands take them.
    """
    if not one_tokenizer(settings.slm, settings.llm):
        raise PairError(
            f"slm {settings.slm!r} and llm {settings.llm!r} have different tokenizers, and {what} "
            "needs one for both; `fedhlm run`, `compare`, `estimate`, `generate` and `serve "
            "device` take two, decoding greedily"
        )
    check_logits(settings.slm, settings.llm)


def build_pair(settings: Settings) -> Backend:
    """The backend that `llm-backend` names, with the token ids of `slm`."""
    if not one_tokenizer(settings.slm, settings.llm):
        _check_text(settings)
    return with_ids_of_slm(settings, build_backend(settings))


def with_ids_of_slm(settings: Settings, backend: Backend) -> Backend:
    """The backend, whose model is `llm`, with the token ids of `slm`."""
    if one_tokenizer(settings.slm, settings.llm):
        return backend
    from servers.retokenized import Retokenized

    small = _words(settings.slm)
    vocab = max(vocabulary_size(settings.slm) or 0, small.size)
    return Retokenized(backend, small, _words(settings.llm), vocab)


def ids_on_the_wire(settings: Settings) -> tuple[str, str]:
    """Whose token ids devices and LLM exchange: the setting, and the model that it names."""
    if one_tokenizer(settings.slm, settings.llm):
        return "llm", settings.llm
    return "slm", settings.slm


def _check_text(settings: Settings) -> None:
    for name, value, allowed in (
        ("decoding", settings.decoding, "greedy"),
        ("verification", settings.verifier, "greedy"),
        ("workload", settings.workload, "generate"),
    ):
        if value != allowed:
            raise SettingsError(
                f"setting {name!r} = {value!r}: slm {settings.slm!r} and llm {settings.llm!r} have "
                f"different tokenizers, and text alone is compared; with them: {allowed}"
            )
    for role, model in (("slm", settings.slm), ("llm", settings.llm)):
        words = _words(model)
        ids = words.encode(PASSAGE)
        if words.said(ids) != PASSAGE:
            raise PairError(
                f"slm {settings.slm!r} and llm {settings.llm!r} have different tokenizers, and the "
                f"{role}'s does not keep text as it is: {PASSAGE!r} becomes "
                f"{words.decode(ids)!r}; give another one, or two models with one tokenizer"
            )


def _words(model: str) -> Words:
    from servers.words import Words

    return Words(load_tokenizer(model, lean=False))
