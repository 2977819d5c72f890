"""What happened to every token a device routed: the raw material of learning and of reports."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hlm.arrays import BoolArray, FloatArray, IntArray
from hlm.feedback import read_feedback


class Stage(IntEnum):
    """Where a token was decided; the names are those of `summary.json`."""

    LOCAL = 0
    CACHE = 1
    PEER = 2
    EDGE = 3
    LLM_ACCEPTED = 4
    LLM_RESAMPLED = 5
    UNRESOLVED = 6

    @property
    def key(self) -> str:
        """Lower-case name, e.g. ``llm_accepted``."""
        return self.name.lower()


UNVERIFIED = (Stage.LOCAL, Stage.CACHE, Stage.PEER, Stage.EDGE, Stage.UNRESOLVED)


class Way(IntEnum):
    """What becomes of a draft once its uncertainty is known."""

    KEPT = 0
    """It stands."""
    AUDITED = 1
    """The policy kept it, and it is verified all the same."""
    ESCALATED = 2
    """Somebody else decides the token."""


class TextBatch:
    """The texts a device works on, growing token by token.

    Parameters
    ----------
    prompts : sequence of numpy.ndarray
        int64 [length_i] token ids.
    sessions : numpy.ndarray
        int64 [rows], the device's number for each text, never used again for another.
    room : int
        Tokens each text may grow by.
    given : bool
        The texts are complete and only asked about (workload `score`): what is decided for a
        place does not become part of the text.

    Attributes
    ----------
    tokens : numpy.ndarray
        int64 [rows, longest prompt + room], left-aligned.
    lengths, prompt_lengths : numpy.ndarray
        int64 [rows].
    stopped : numpy.ndarray
        bool [rows]: nobody wants more of the text; generation leaves it as it is.
    """

    def __init__(
        self,
        prompts: Sequence[IntArray],
        sessions: IntArray,
        room: int = 0,
        given: bool = False,
    ) -> None:
        self.given = given
        longest = max(len(prompt) for prompt in prompts)
        self.tokens = np.zeros((len(prompts), longest + room), np.int64)
        for row, prompt in enumerate(prompts):
            self.tokens[row, : len(prompt)] = prompt
        self.lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        self.prompt_lengths = self.lengths.copy()
        self.sessions = np.asarray(sessions, np.int64)
        self.stopped = np.zeros(len(prompts), np.bool_)
        # How well the small model foretold the tokens; made when a learned policy asks for it.
        self.trace: NDArray[np.float32] | None = None

    def append(self, rows: IntArray, tokens: IntArray) -> None:
        """Add one token (int64 [n]) to each of the named rows (int64 [n])."""
        self.tokens[rows, self.lengths[rows]] = tokens
        self.lengths[rows] += 1

    def text(self, row: int) -> IntArray:
        """All tokens of one text, int64 [length]."""
        return self.tokens[row, : self.lengths[row]]


@dataclass(frozen=True)
class TokenFeedback:
    """What the LLM said of m tokens that it read.

    Attributes
    ----------
    rows, steps : numpy.ndarray
        int64 [m], the routed places.
    codes : numpy.ndarray
        uint8 [m], see `hlm.feedback`.
    about_draft : numpy.ndarray
        bool [m]: it is about the draft, which need not be what the text got; otherwise about the
        text's token.
    """

    rows: IntArray
    steps: IntArray
    codes: NDArray[np.uint8]
    about_draft: BoolArray


class TokenRecords:
    """One entry for each routed token, [rows, steps]; entries past a text's end are not `present`.

    Attributes
    ----------
    present, sure, kept, audited, escalated : numpy.ndarray
        bool. `sure`: the policy would keep the draft; `kept`: it did, since no stream of the LLM
        went on; `audited`: verified all the same; `escalated`: left the device, whoever decided it.
    draft, token, position : numpy.ndarray
        int64. What the SLM proposed, what the text got, and its place in the text.
    stage : numpy.ndarray
        int8, a `Stage`.
    uncertainty : numpy.ndarray
        float64 in [0, 1].
    probability : numpy.ndarray
        float64 in (0, 1], the SLM's probability of the draft (eq. 3's x_d).
    log_prob : numpy.ndarray
        float64, nats: the LLM's log-probability of the draft, to the precision of one byte; NaN
        where the LLM has not read the place.
    choice : numpy.ndarray
        int8: 1 if the text's token is what the LLM itself would have put there, 0 if not,
        -1 unknown.
    draft_choice : numpy.ndarray
        int8, the same of the draft.
    measured_only : numpy.ndarray
        bool: the LLM's view of the place was fetched for the report alone. The device did not
        see it, and nothing may learn from it.
    features : numpy.ndarray or None
        float32 [rows, steps, f].
    """

    def __init__(self, rows: int, steps: int, features: int = 0) -> None:
        shape = (rows, steps)
        self.present = np.zeros(shape, np.bool_)
        self.kept = np.zeros(shape, np.bool_)
        self.sure = np.zeros(shape, np.bool_)
        self.audited = np.zeros(shape, np.bool_)
        self.escalated = np.zeros(shape, np.bool_)
        self.draft = np.full(shape, -1, np.int64)
        self.token = np.full(shape, -1, np.int64)
        self.position = np.full(shape, -1, np.int64)
        self.stage = np.full(shape, -1, np.int8)
        self.uncertainty = np.full(shape, np.nan)
        self.probability = np.full(shape, np.nan)
        self.log_prob = np.full(shape, np.nan)
        self.choice = np.full(shape, -1, np.int8)
        self.draft_choice = np.full(shape, -1, np.int8)
        self.measured_only = np.zeros(shape, np.bool_)
        self.features = np.zeros((*shape, features), np.float32) if features else None

    def select(self, rows: IntArray) -> TokenRecords:
        """Those of some rows, int64 [n]."""
        found = copy(self)
        arrays = {name: one for name, one in vars(self).items() if one is not None}
        vars(found).update({name: one[rows] for name, one in arrays.items()})
        return found

    def note_feedback(self, feedback: TokenFeedback) -> None:
        """Note the LLM's view of tokens."""
        places = feedback.rows, feedback.steps
        log_prob, choice = read_feedback(feedback.codes)
        self.choice[places] = np.where(feedback.about_draft, self.choice[places], choice)
        drafted = feedback.about_draft | (self.token[places] == self.draft[places])
        drafts = feedback.rows[drafted], feedback.steps[drafted]
        self.log_prob[drafts], self.draft_choice[drafts] = log_prob[drafted], choice[drafted]

    def ratio_beta(self) -> FloatArray:
        """Eq. 3, max(1 - y_d / x_d, 0), float64 [rows, steps]; NaN where y_d is unknown."""
        ratio = np.exp(self.log_prob) / np.where(self.probability > 0, self.probability, 1.0)
        return np.asarray(np.clip(1.0 - ratio, 0.0, 1.0))

    def loss(self, shared_draw: bool) -> FloatArray:
        """Loss of keeping the draft, in [0, 1]; NaN where unknown.

        1{draft is not the LLM's choice} where that choice is defined (`shared_draw`): in greedy
        decoding, where both distributions are point masses, and for coupled draws, where eq. 3 is
        not valid (this is one sample of the loss that is: 1 - P(both draw the draft) / x_d).
        Otherwise eq. 3.
        """
        if not shared_draw:
            return self.ratio_beta()
        return np.where(self.draft_choice < 0, np.nan, 1.0 - self.draft_choice)

    def agreement(self, shared_draw: bool) -> FloatArray:
        """How surely each token is what the LLM would have put there, [rows, steps] in [0, 1].

        1 where the LLM decided. Elsewhere, if the LLM's own choice under the same randomness is
        defined (`shared_draw`: greedy decoding, or coupled draws), whether the token is that
        choice; otherwise the chance that verification would have let it stand, 1 - beta.
        NaN where the LLM has not read the place.
        """
        decided = (self.stage == Stage.LLM_ACCEPTED) | (self.stage == Stage.LLM_RESAMPLED)
        if shared_draw:
            other = np.where(self.choice < 0, np.nan, self.choice)
        else:
            other = np.where(self.token == self.draft, 1.0 - self.ratio_beta(), np.nan)
        return np.where(decided, 1.0, other)

    @property
    def unresolved(self) -> BoolArray:
        """Tokens that the device asked about and nobody decided, bool [rows, steps].

        Their drafts stand in the text unverified. Every estimate of risk takes them for wrong,
        whatever the LLM may have shown of them later: what is estimated is what a user gets when
        the link is as it was.
        """
        return np.asarray(self.present & (self.stage == Stage.UNRESOLVED))

    def kept_loss(self, shared_draw: bool) -> FloatArray:
        """The certificate's terms: loss where the token was never verified, else 0; NaN unknown.

        Unresolved tokens count as wrong. With a shared draw a cache's or peer's token that is not
        the draft counts by itself.
        """
        decided = (self.stage == Stage.LLM_ACCEPTED) | (self.stage == Stage.LLM_RESAMPLED)
        own = np.where(self.choice < 0, np.nan, 1.0 - self.choice)
        loss = own if shared_draw else self.loss(False)
        return np.where(decided, 0.0, np.where(self.unresolved, 1.0, loss))

    def stage_counts(self) -> dict[str, int]:
        """Tokens decided at each stage; the values sum to the number of tokens."""
        stages = self.stage[self.present]
        return {stage.key: int((stages == stage).sum()) for stage in Stage}

    @property
    def tokens(self) -> int:
        """Number of routed tokens."""
        return int(self.present.sum())


@dataclass
class Traffic:
    """What crossed the link, and how long the device waited.

    Attributes
    ----------
    uplink, downlink : int
        Bytes of encoded messages to and from the LLM server.
    messages : int
        Exchanges with the LLM server.
    streams : int
        Those of them after which it went on writing.
    decoded, overshot : int
        Tokens that the LLM decided or wrote, and those of them that no text took.
    edge : int
        Bytes both ways between the device and its edge server.
    failures : int
        Exchanges with either that brought no answer.
    refused, untrusted : int
        Those of them in which the LLM server refused the device's token, or its certificate was
        not accepted.
    waited : float
        Seconds spent waiting for answers of LLM and edge server.
    slm : float
        Seconds spent in the small model.
    measured : int
        Bytes of measurement (the LLM reading texts for the report only); not traffic of the
        method, and counted in none of the above.
    """

    uplink: int = 0
    downlink: int = 0
    messages: int = 0
    streams: int = 0
    decoded: int = 0
    overshot: int = 0
    edge: int = 0
    failures: int = 0
    refused: int = 0
    untrusted: int = 0
    waited: float = 0.0
    slm: float = 0.0
    measured: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        """Sum field by field."""
        return Traffic(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def since(self, before: Traffic) -> Traffic:
        """What has come on top of earlier counts."""
        return Traffic(
            **{name: value - getattr(before, name) for name, value in vars(self).items()}
        )

    def split(self, parts: int) -> list[Traffic]:
        """Even shares that add up to these counts; whole numbers where these are."""

        def share(count: int | float, part: int) -> Any:
            if isinstance(count, float):
                return count / parts
            return count * (part + 1) // parts - count * part // parts

        names = vars(self)
        return [
            Traffic(**{name: share(names[name], part) for name in names}) for part in range(parts)
        ]

    def include(self, other: Traffic) -> None:
        """Add another's counts to these, in place."""
        vars(self).update(vars(self + other))

    def as_measured(self) -> Traffic:
        """The same exchanges, made for the report alone."""
        both = self.uplink + self.downlink
        return replace(self, uplink=0, downlink=0, messages=0, waited=0.0, measured=both)
