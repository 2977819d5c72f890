"""The ways a device can decode with a model, and which of them is right for it.

All texts in lockstep is fast; whether a model allows it is found out by trial, against full forward
passes, when the model is loaded (`hlm.reading.agreement`). Models it does not suit read text by
text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from clients.decoding.lockstep import FusedLockstepDecoder, FusedRollbackDecoder, fused_form
from clients.decoding.slm import LockstepDecoder, read_texts
from clients.decoding.steps import Decoder, ShrinkingDecoder, Step
from clients.decoding.textwise import TextwiseDecoder
from hlm.arrays import IntArray
from hlm.reading.agreement import Compared, Reference, Way, first_that_agrees, trial_length
from hlm.reading.plain import FullForward, OwnCaches, PlainReading

USUAL_CONTEXT = 128


Make = Callable[[PreTrainedModel, Sequence[IntArray], bool], ShrinkingDecoder]


def _shrinking(
    model: PreTrainedModel, prompts: Sequence[IntArray], hidden: bool
) -> ShrinkingDecoder:
    return LockstepDecoder(model, prompts, hidden, shrinks=True)


def _textwise(reading: Callable[[PreTrainedModel, bool], PlainReading]) -> Make:
    return lambda model, prompts, hidden: TextwiseDecoder(reading(model, hidden), prompts)


def _own_caches(model: PreTrainedModel, hidden: bool, is_singly: bool = False) -> OwnCaches:
    return OwnCaches(model, lambda: DynamicCache(config=model.config), hidden, is_singly=is_singly)


_PLAIN: dict[str, Make] = {
    "one text at a time, with the model's own cache": _textwise(_own_caches),
    "one token at a time, with the model's own cache": _textwise(
        partial(_own_caches, is_singly=True)
    ),
    "every text from its start": _textwise(FullForward),
}
_LOCKSTEP = "all texts in lockstep"
_FUSED = "all texts in lockstep, by a written-out forward pass"


@dataclass(frozen=True)
class DeviceWays:
    """How a device decodes with a model.

    Attributes
    ----------
    lockstep : str
        The way of texts that only grow.
    rollback : str
        The way of texts that shrink when drafts are rejected.
    """

    lockstep: str
    rollback: str

    @property
    def is_plain(self) -> bool:
        """Whether texts that only grow are read a slow way."""
        return self.lockstep in _PLAIN


# By the longest text that was tried.
_found: WeakKeyDictionary[PreTrainedModel, dict[int, DeviceWays]] = WeakKeyDictionary()


def best_ways(model: PreTrainedModel, longest: int = 0) -> DeviceWays:
    """The fastest ways of decoding with a model that agree with the plain model.

    Tried once per model and length of trial (`hlm.reading.agreement.trial_length`).

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Any causal model.
    longest : int
        Tokens of the longest text; 0 takes what was tried before, or 128.

    Raises
    ------
    ModelRefusedError
        When there is none.
    """
    known = _found.setdefault(model, {})
    if known and longest == 0:
        return known[max(known)]
    length = trial_length(model.config.get_text_config(), longest or USUAL_CONTEXT)
    if length not in known:
        name = model.config.name_or_path or type(model).__name__
        reference = Reference(model, length)
        lockstep = [Way(_LOCKSTEP, False, _lockstep_trial(LockstepDecoder))]
        rollback = [Way(_LOCKSTEP, False, _rollback_trial(_shrinking))]
        if fused_form(model) is not None:
            lockstep.insert(0, Way(_FUSED, False, _lockstep_trial(_fused)))
            rollback.insert(0, Way(_FUSED, False, _rollback_trial(_fused_rollback)))
        for way, make in _PLAIN.items():
            lockstep.append(Way(way, True, _lockstep_trial(make)))
            rollback.append(Way(way, True, _rollback_trial(make)))
        known[length] = DeviceWays(
            first_that_agrees(name, lockstep, reference).name,
            first_that_agrees(f"{name}, when tokens are taken back,", rollback, reference).name,
        )
    return known[length]


def lockstep_decoder(
    model: PreTrainedModel, prompts: Sequence[IntArray], hidden: bool = False
) -> Decoder:
    """A decoder of texts that only grow, the way that suits the model; see `LockstepDecoder`."""
    way = best_ways(model).lockstep
    if way == _FUSED:
        return _fused(model, prompts, hidden)
    return _PLAIN.get(way, LockstepDecoder)(model, prompts, hidden)


def rollback_decoder(
    model: PreTrainedModel, prompts: Sequence[IntArray], hidden: bool = False
) -> ShrinkingDecoder:
    """A decoder of texts that can shrink, the way that suits the model; see `LockstepDecoder`."""
    way = best_ways(model).rollback
    if way == _FUSED:
        return _fused_rollback(model, prompts, hidden)
    return _PLAIN.get(way, _shrinking)(model, prompts, hidden)


def _fused(model: PreTrainedModel, prompts: Sequence[IntArray], hidden: bool) -> Decoder:
    decoder = fused_form(model)
    assert decoder is not None
    return FusedLockstepDecoder(decoder, prompts, hidden)


def _fused_rollback(
    model: PreTrainedModel, prompts: Sequence[IntArray], hidden: bool
) -> ShrinkingDecoder:
    decoder = fused_form(model)
    assert decoder is not None
    return FusedRollbackDecoder(decoder, prompts, hidden)


def _lockstep_trial(
    make: Callable[[PreTrainedModel, Sequence[IntArray], bool], Decoder],
) -> Callable[[Reference], Iterator[Compared]]:
    def trial(reference: Reference) -> Iterator[Compared]:
        """Prompts of different length, steps up to the longest text, a row that ends."""
        lengths = np.array([reference.length - 4, reference.length // 2, 3])
        texts = reference.texts[:3]
        for step in read_texts(reference.model, [texts[0][: int(lengths[0])], texts[2][:3]])[1:]:
            yield Compared(
                "given texts", step.logits, reference.logits(texts[2][:3], np.arange(1, 3))
            )
        decoder = make(reference.model, [t[:n] for t, n in zip(texts, lengths, strict=True)], False)
        yield _compared("prompts of different length", reference, decoder.start(), texts, lengths)
        for count in range(4):
            if count == 2:
                decoder.keep_rows(np.array([0, 2]))
                texts, lengths = [texts[0], texts[2]], lengths[[0, 2]]
            step = decoder.step(np.array([t[n] for t, n in zip(texts, lengths, strict=True)]))
            lengths = lengths + 1
            yield _compared("a step of all texts", reference, step, texts, lengths)

    return trial


def _rollback_trial(make: Make) -> Callable[[Reference], Iterator[Compared]]:
    def trial(reference: Reference) -> Iterator[Compared]:
        """Tokens appended and taken back, more in some texts than in others, then a long way on."""
        most = reference.length
        texts, lengths = reference.texts[:3], np.array([most // 2, most // 4, 4])
        decoder = make(reference.model, [t[:n] for t, n in zip(texts, lengths, strict=True)], False)
        decoder.start()
        for counts, back in (((3, 1, 2), (2, 0, 1)), ((1, 3, 1), (0, 2, 2))):
            lengths = _append(decoder, texts, lengths, np.array(counts))[1]
            decoder.take_back(np.array(back))
            lengths = lengths - np.array(back)
        texts = [
            np.concatenate([text[:length], text[length:][::-1]])
            for text, length in zip(texts, lengths, strict=True)
        ]
        # On to the longest text: whatever border there is, it is crossed after the gaps.
        for counts in ((2, 1, 1), (most - int(lengths[0]) - 4, 1, 1), (1, 1, 1)):
            step, lengths = _append(decoder, texts, lengths, np.array(counts))
            yield _compared("tokens taken back", reference, step, texts, lengths)

    return trial


def _append(
    decoder: ShrinkingDecoder, texts: Sequence[IntArray], lengths: IntArray, counts: IntArray
) -> tuple[Step, IntArray]:
    """Read on in each text, so many tokens; what comes then, and the new lengths."""
    width = int(counts.max())
    tokens = np.zeros((len(texts), width), np.int64)
    for line, text, length, count in zip(tokens, texts, lengths, counts, strict=True):
        line[width - count :] = text[length : length + count]
    return decoder.read(tokens, counts), lengths + counts


def _compared(
    part: str, reference: Reference, step: Step, texts: Sequence[IntArray], lengths: IntArray
) -> Compared:
    expected = [
        reference.logits(text[:length], np.array([length]))
        for text, length in zip(texts, lengths, strict=True)
    ]
    return Compared(part, step.logits, torch.cat(expected))
