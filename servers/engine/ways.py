"""The ways an engine can read a model, and which of them is right for it.

A reader of slots is fast; whether a model allows it is found out by trial, against full forward
passes, when the model is loaded (`hlm.reading.agreement`). Models it does not suit are read the
plain way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from hlm.arrays import IntArray
from hlm.reading.agreement import Compared, Reference, Way, first_that_agrees, trial_length
from hlm.reading.fused import FusedDecoder, can_fuse
from hlm.reading.plain import FullForward, OwnCaches, Passage
from servers.engine.fused_reader import FusedReader
from servers.engine.packed_attention import NAME as PACKED_ATTENTION
from servers.engine.packed_linear import can_pack, packed_product, packed_twin
from servers.engine.reading import PlainReader, Reader, SlotReader, use_packed_attention


@dataclass(frozen=True)
class EngineWay:
    """One way of reading, for one model.

    Attributes
    ----------
    name : str
        In words, for logs and reports.
    is_plain : bool
        Whether it is a slow one.
    reader : callable
        (slots, max_context) -> Reader.
    """

    name: str
    is_plain: bool
    reader: Callable[[int, int], Reader]


# Names of the ways found for a model: by its attention and the longest text that was tried.
_found: WeakKeyDictionary[PreTrainedModel, dict[tuple[str, int], str]] = WeakKeyDictionary()
# The engines of a process may share a model, and then its written-out form.
_written: WeakKeyDictionary[PreTrainedModel, FusedDecoder] = WeakKeyDictionary()


def best_way(model: PreTrainedModel, max_context: int) -> EngineWay:
    """The fastest way of reading a model that agrees with the plain model.

    Tried once per model, attention and length of trial (`hlm.reading.agreement.trial_length`).

    Raises
    ------
    ModelRefusedError
        When there is none.
    """
    length = trial_length(model.config.get_text_config(), max_context)
    attention = str(model.config._attn_implementation)
    attention = "sdpa" if attention == PACKED_ATTENTION else attention
    ways = list(_ways(model))
    known = _found.setdefault(model, {})
    if (attention, length) not in known:
        name = model.config.name_or_path or type(model).__name__
        trials = [Way(way.name, way.is_plain, _trial_of(way)) for way in ways]
        chosen = first_that_agrees(name, trials, Reference(model, length))
        known[attention, length] = chosen.name
    return next(way for way in ways if way.name == known[attention, length])


def _ways(model: PreTrainedModel) -> Iterator[EngineWay]:
    """All ways, fastest first; what each needs of the model is prepared when it is first used."""
    twins: list[PreTrainedModel] = []

    def written_out(slots: int, max_context: int) -> Reader:
        if model not in _written:
            linear = packed_product if can_pack(model) else None
            _written[model] = FusedDecoder(model, linear)
        return FusedReader(_written[model], slots, max_context)

    def packed_linear(slots: int, max_context: int) -> Reader:
        if not twins:
            twins.append(packed_twin(model))
        return _slots(twins[0], slots, max_context)

    def plain_linear(slots: int, max_context: int) -> Reader:
        return _slots(model, slots, max_context)

    def padded(slots: int, max_context: int) -> Reader:
        _undo_packed_attention(model)
        return SlotReader(model, slots, max_context, is_packed=False)

    def own_caches(slots: int, max_context: int) -> Reader:
        _undo_packed_attention(model)
        return PlainReader(OwnCaches(model, lambda: DynamicCache(config=model.config)))

    def own_caches_singly(slots: int, max_context: int) -> Reader:
        new_cache = lambda: DynamicCache(config=model.config)  # noqa: E731
        return PlainReader(OwnCaches(model, new_cache, is_singly=True))

    def full_forward(slots: int, max_context: int) -> Reader:
        _undo_packed_attention(model)
        return PlainReader(FullForward(model))

    if can_fuse(model):
        yield EngineWay("written-out forward pass", False, written_out)
    yield EngineWay("packed linear layers", False, packed_linear)
    yield EngineWay("plain linear layers", False, plain_linear)
    yield EngineWay("padded", False, padded)
    yield EngineWay("one text at a time, with the model's own cache", True, own_caches)
    yield EngineWay("one token at a time, with the model's own cache", True, own_caches_singly)
    yield EngineWay("every text from its start", True, full_forward)


def _slots(model: PreTrainedModel, slots: int, max_context: int) -> Reader:
    return SlotReader(model, slots, max_context, is_packed=use_packed_attention(model))


def _undo_packed_attention(model: PreTrainedModel) -> None:
    if model.config._attn_implementation == PACKED_ATTENTION:
        model.set_attn_implementation("sdpa")


def _trial_of(way: EngineWay) -> Callable[[Reference], Iterator[Compared]]:
    def trial(reference: Reference) -> Iterator[Compared]:
        return _trial(way.reader(3, reference.length), reference)

    return trial


def _trial(reader: Reader, reference: Reference) -> Iterator[Compared]:
    """Sessions at different places in one batch, up to the longest text, and tokens taken back."""
    one, two, three, other = reference.texts
    most = reference.length
    third, half = most // 3, most // 2
    changed = np.concatenate([one[: most - 4], other[:3]])
    steps: list[tuple[str, list[Passage]]] = [
        ("texts of different length", [_said(0, one, 0, third), _said(1, two, 0, 2)]),
        (
            "sessions at different places",
            [_said(0, one, third, third + 1), _said(1, two, 2, half), _said(2, three, 0, 1)],
        ),
        ("a long text", [_said(0, one, third + 1, most), _said(2, three, 1, 3)]),
        (
            "tokens taken back",
            [_said(0, changed, most - 4, most - 1), _said(1, two, half, half + 1)],
        ),
        ("tokens taken back twice", [_said(1, other, 0, 3), _said(2, three, 2, 4)]),
    ]
    for part, passages in steps:
        found = reader.read(passages)
        expected = [reference.logits(passage.text, passage.wanted) for passage in passages]
        yield Compared(part, found, torch.cat(expected))


def _said(slot: int, text: IntArray, first: int, end: int) -> Passage:
    """Tokens ``first .. end - 1`` of a text, with the logits after each of them."""
    return Passage(slot, text[:end], first, np.arange(first + 1, end + 1))
