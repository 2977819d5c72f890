"""Whether a way of reading agrees with the plain model: full forward passes, no cache, no padding.

A fast way of reading a causal model assumes something of it: that its memory is a list of keys
and values, that positions are all that tells two columns apart, that attention sees everything.
Nothing in a model's configuration says reliably whether that holds, so it is tried when the model
is loaded, on texts that strain those assumptions, and the first way that agrees serves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hlm.arrays import IntArray
from hlm.reading.plain import FullForward, Passage

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
"""Largest root mean square of a position's logit errors, over the spread of its logits."""

TIE = 4.0
"""Two tokens whose logits lie closer than this many tolerances are a tie, either may come first."""

# In half precision a mixture of experts may route a token whose experts tie elsewhere when the
# shape of a batch changes, the plain model as well: then that position differs by more.
_MAY_DIFFER = {torch.float16: 0.25, torch.bfloat16: 0.25}

MOST_TRIED = 1024
"""Longest text that is tried: a limit of the model beyond it is not crossed."""

_USUAL = 128

# Lengths at which a model begins to read differently, by the names configurations give them.
_BORDERS = (
    "sliding_window",
    "attention_chunk_size",
    "window_size",
    "attention_window_size",
    "chunk_size",
    "mamba_chunk_size",
    "block_size",
)
_ONLY_WITH = {"sliding_window": "sliding_attention", "attention_chunk_size": "chunked_attention"}
# Kinds of rotary positions whose frequencies change for the whole text once it is long.
_CHANGING = ("longrope", "dynamic")
_POSITIONS = ("max_position_embeddings", "max_seq_len")

logger = logging.getLogger(__name__)


class ModelRefusedError(ValueError):
    """No way of reading the model gives what the plain model gives; the message names it."""


@dataclass(frozen=True)
class Compared:
    """Logits found by some way of reading, with those of the plain model.

    Attributes
    ----------
    part : str
        What was tried, in words.
    found, expected : torch.Tensor
        float32 [n, vocab].
    """

    part: str
    found: torch.Tensor
    expected: torch.Tensor


@dataclass(frozen=True)
class Way:
    """One way of reading a model.

    Attributes
    ----------
    name : str
        In words, for logs.
    is_plain : bool
        Whether it is one of the slow ones.
    trial : callable
        Reads the texts of a `Reference` this way; yields what is to be compared.
    """

    name: str
    is_plain: bool
    trial: Callable[[Reference], Iterable[Compared]]


class Reference:
    """Texts to try a model on, with the logits of the plain model.

    Parameters
    ----------
    model : Any
        A causal model of Transformers.
    length : int
        Tokens of the longest text, >= 16.
    """

    def __init__(self, model: Any, length: int) -> None:
        self.model = model
        self.length = length
        self.vocab = int(model.config.get_text_config().vocab_size)
        self._plain = FullForward(model)
        self._known: list[tuple[IntArray, torch.Tensor]] = []
        config = model.config.get_text_config()
        special = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")]
        generator = np.random.default_rng(0)
        tokens = np.setdiff1d(
            generator.integers(0, self.vocab, 256), [s for s in special if isinstance(s, int)]
        )
        self.texts = [
            generator.choice(tokens, size) for size in (length, length // 2 + 8, length // 2 + 8, 8)
        ]
        """int64, of `length`, twice half of it, and 8 tokens; any prefix may be read."""

    def logits(self, text: IntArray, wanted: IntArray) -> torch.Tensor:
        """What the plain model gives at positions ``wanted`` of a text: float32 [m, vocab].

        The logits of a text's start are taken from a longer text with that start.
        """
        for longer in [known for known, _ in self._known] + self.texts:
            if len(longer) >= len(text) and np.array_equal(longer[: len(text)], text):
                return self._read(longer)[torch.from_numpy(wanted - 1)]
        return self._read(text)[torch.from_numpy(wanted - 1)]

    def _read(self, text: IntArray) -> torch.Tensor:
        for known, logits in self._known:
            if known is text:
                return logits
        everything = np.arange(1, len(text) + 1)
        found = self._plain.read([Passage(0, text, 0, everything)])[0].logits
        self._known.append((text, found))
        return found


def difference(compared: Compared, dtype: torch.dtype) -> str | None:
    """Why logits do not agree, in words; None if they do.

    Each position's error is the root mean square over the vocabulary, relative to the standard
    deviation of the position's expected logits. The most likely token must be the same too, unless
    the two in question tie (`TIE`). In half precision a quarter of the positions may differ.

    Parameters
    ----------
    compared : Compared
        What was found and what was expected.
    dtype : torch.dtype
        Format the model calculates in.
    """
    found, expected = compared.found.double(), compared.expected.double()
    tolerance = TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16])
    spread = expected.std(dim=1).clamp_min(1e-12)
    error = (found - expected).square().mean(dim=1).sqrt() / spread
    error = error.nan_to_num(torch.inf)
    chosen = found.nan_to_num(-torch.inf).argmax(dim=1, keepdim=True)
    lost = (expected.amax(dim=1) - expected.gather(1, chosen)[:, 0]) / spread
    wrong = (error > tolerance) | (lost > TIE * tolerance)
    allowed = _MAY_DIFFER.get(dtype, 0.0)
    if float(wrong.double().mean()) <= allowed:
        return None
    return f"{compared.part}: logits differ by {float(error.max()):.2g} of their spread"


@torch.inference_mode()
def first_that_agrees(name: str, ways: Sequence[Way], reference: Reference) -> Way:
    """The first way that agrees with the plain model; says so in the log where that is a slow one.

    Parameters
    ----------
    name : str
        Of the model, for messages.
    ways : sequence of Way
        Fastest first.
    reference : Reference
        What they are compared with.

    Raises
    ------
    ModelRefusedError
        When none agrees.
    """
    reasons: list[str] = []
    for way in ways:
        reason = _failure(way, reference)
        if reason is None:
            if reasons:
                how = "a slow way" if way.is_plain else "another way"
                why = "; ".join(reasons)
                logger.warning("model %s is read %s (%s), since %s", name, how, way.name, why)
            return way
        reasons.append(f"{way.name} fails on {reason}")
    raise ModelRefusedError(f"model {name} cannot be used: {_explained(reference) or reasons[-1]}")


def _failure(way: Way, reference: Reference) -> str | None:
    dtype = reference.model.dtype
    try:
        for compared in way.trial(reference):
            reason = difference(compared, dtype)
            if reason is not None:
                return reason
    except Exception as error:  # whatever a model that was not made for it raises
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return None


def _explained(reference: Reference) -> str | None:
    """What the plain model itself lacks, if that is why."""
    text, half = reference.texts[0], reference.length // 2
    plain, everything = FullForward(reference.model), np.arange(1, half + 1)
    dtype = reference.model.dtype
    try:
        first, again, longer = (
            plain.read([Passage(0, one, 0, everything)])[0].logits
            for one in (text[:half], text[:half], text)
        )
    except Exception as error:
        return f"its forward pass fails ({type(error).__name__}: {' '.join(str(error).split())})"
    if bool(first.isnan().any()):
        return "its logits are no numbers (NaN): are its weights damaged?"
    if difference(Compared("", again, first), dtype):
        return "it is not deterministic: the same text gives other logits the second time"
    if difference(Compared("", longer, first), dtype):
        return "it is not causal: what it says of a token depends on tokens that come later"
    return None


def borders(config: Any) -> list[int]:
    """Lengths in tokens at which a model's (text) configuration says that it reads differently."""
    layers = getattr(config, "layer_types", None) or _ONLY_WITH.values()
    found = [
        getattr(config, name, None)
        for name in _BORDERS
        if name not in _ONLY_WITH or _ONLY_WITH[name] in layers
    ]
    rotary = getattr(config, "rope_parameters", None) or {}
    for one in (rotary, *(value for value in rotary.values() if isinstance(value, dict))):
        if one.get("rope_type") in _CHANGING:
            found.append(one.get("original_max_position_embeddings"))
    return sorted({one for one in found if isinstance(one, int) and one > 0})


def positions_limit(config: Any) -> int:
    """Longest text in tokens that a model has positions for; 2**31 where it names no limit."""
    found = [getattr(config, name, None) for name in _POSITIONS]
    return min([one for one in found if isinstance(one, int) and one > 0], default=2**31)


def context_limit(config: Any) -> int:
    """Longest context a model is trusted with, in tokens, by its (text) configuration.

    Its positions; and a window of attention or a border of another kind that is too long to be
    tried (`MOST_TRIED`): up to there it reads as if there were none.
    """
    return min([positions_limit(config), *(one for one in borders(config) if one > MOST_TRIED)])


def trial_length(config: Any, longest: int) -> int:
    """Tokens of the longest text that a model is tried on, for texts of up to `longest`.

    Whole contexts up to 128 tokens; more only to go beyond a border that lies within `longest`.
    """
    within = [one + 16 for one in borders(config) if one < longest and one <= MOST_TRIED]
    wanted = min(longest, max([_USUAL, *within]))
    return min(max(wanted, 16), positions_limit(config))
