"""What a device knows about the tokens it produced.

One row is one drafted token: how unsure the small model was (``u``), whether the device kept the
draft, and, where the large model has spoken, how wrong the draft was (``beta``). There is never
text, a token id or a prefix in here, so it can outlive the conversation it came from
(:mod:`clients.learning.feedback_store`).

``beta`` becomes known in three ways: the token was escalated and verified, the server read it as
part of a later prefix and returned its log-probability ("free feedback"), or the device audited
it: verified a kept token anyway, with probability ``audit_rate``. The first two have weight 1,
an audited kept token has weight ``1 / audit_rate``, so that ``sum(known * weight * f(beta))`` is
an unbiased estimate of ``sum(f(beta))`` over all tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

COLUMN_DTYPES: dict[str, type[np.generic]] = {
    "u": np.float64,
    "beta": np.float64,
    "ratio_beta": np.float64,
    "kept": np.bool_,
    "known": np.bool_,
    "weight": np.float64,
    "prompt": np.int64,
    "below": np.bool_,
}
"""Columns every row has, in order, and their types."""


@dataclass(frozen=True)
class Feedback:
    """Columns over ``n`` drafted tokens; build one with :meth:`create` to get defaults.

    Attributes
    ----------
    u : float64 [n], in [0, 1]
        Uncertainty, or the learned router's score in its place.
    beta : float64 [n], in [0, 1]
        The loss of keeping the draft: ``1{draft != argmax y}`` in greedy decoding,
        ``max(1 - y_d / x_d, 0)`` (FedHLM eq. 3) in sampled decoding. Undefined where not ``known``.
    ratio_beta : float64 [n], in [0, 1]
        Eq. 3's value on the softmax distributions, whatever the decoding. Undefined where not
        ``known``.
    kept : bool [n]
        The draft stands in the text without verification: the policy kept it, or nobody answered.
    known : bool [n]
        ``beta``, ``ratio_beta`` and ``below`` are measured for this token.
    weight : float64 [n], >= 0
        Inverse probability of being measured: 1 for verified tokens and free feedback,
        ``1 / audit_rate`` for audited kept tokens, 0 for those that no audit has drawn. A token
        that was to be measured and is not ``known`` has the weight of one that was.
    prompt : int64 [n]
        The prompt the token belongs to: the exchangeable unit of every guarantee. Unique within
        one client and store.
    below : bool [n]
        ``y_d < x_d``: speculative sampling could have rejected the draft.
    features : float32 [n, f] or None
        What a learned router sees of the step.
    """

    u: NDArray[np.float64]
    beta: NDArray[np.float64]
    ratio_beta: NDArray[np.float64]
    kept: NDArray[np.bool_]
    known: NDArray[np.bool_]
    weight: NDArray[np.float64]
    prompt: NDArray[np.int64]
    below: NDArray[np.bool_]
    features: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        """Bring columns to their dtype and refuse what no loss could use.

        Raises
        ------
        ValueError
            On columns of different length, values outside their range, or NaN where ``known``.
        """
        rows = np.size(self.u)
        for name, dtype in COLUMN_DTYPES.items():
            column = np.asarray(getattr(self, name), dtype=dtype)
            if column.shape != (rows,):
                raise ValueError(
                    f"feedback column {name} has shape {column.shape}, expected ({rows},)"
                )
            object.__setattr__(self, name, column)
        _require_unit_interval("u", self.u)
        _require_unit_interval("beta", self.beta[self.known])
        _require_unit_interval("ratio_beta", self.ratio_beta[self.known])
        if not (np.isfinite(self.weight).all() and (self.weight >= 0).all()):
            raise ValueError("feedback column weight must be finite and not negative")
        if self.features is not None:
            features = np.asarray(self.features, dtype=np.float32)
            if features.ndim != 2 or len(features) != rows:
                raise ValueError(
                    f"feedback features have shape {features.shape}, expected ({rows}, f)"
                )
            object.__setattr__(self, "features", features)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.u)

    @classmethod
    def create(
        cls,
        u: ArrayLike,
        beta: ArrayLike,
        *,
        ratio_beta: ArrayLike | None = None,
        kept: ArrayLike | None = None,
        known: ArrayLike | None = None,
        weight: ArrayLike | None = None,
        prompt: ArrayLike | None = None,
        below: ArrayLike | None = None,
        features: ArrayLike | None = None,
    ) -> Feedback:
        """Columns with defaults: escalated, known, weight 1, each token its own prompt.

        ``ratio_beta`` defaults to ``beta`` and ``below`` to ``ratio_beta > 0``, which is the same
        statement by eq. 3.
        """
        uncertainty = np.asarray(u, dtype=np.float64)
        loss = np.asarray(beta, dtype=np.float64)
        rows = len(uncertainty)
        ratio = loss if ratio_beta is None else np.asarray(ratio_beta, dtype=np.float64)
        return cls(
            u=uncertainty,
            beta=loss,
            ratio_beta=ratio,
            kept=np.zeros(rows, bool) if kept is None else np.asarray(kept, bool),
            known=np.ones(rows, bool) if known is None else np.asarray(known, bool),
            weight=np.ones(rows) if weight is None else np.asarray(weight, np.float64),
            prompt=np.arange(rows) if prompt is None else np.asarray(prompt, np.int64),
            below=ratio > 0 if below is None else np.asarray(below, bool),
            features=None if features is None else np.asarray(features, np.float32),
        )

    @classmethod
    def empty(cls, feature_count: int | None = None) -> Feedback:
        """Zero tokens; ``feature_count`` gives the width of an empty feature table."""
        features = None if feature_count is None else np.zeros((0, feature_count), np.float32)
        return cls.create([], [], features=features)

    @classmethod
    def concatenate(cls, parts: Sequence[Feedback]) -> Feedback:
        """All rows of ``parts`` in order. Features survive only if every non-empty part has them.

        Raises
        ------
        ValueError
            If feature tables differ in width.
        """
        filled = [part for part in parts if len(part)]
        if not filled:
            return parts[0] if parts else cls.empty()
        tables = [part.features for part in filled if part.features is not None]
        if len({table.shape[1] for table in tables}) > 1:
            widths = sorted({table.shape[1] for table in tables})
            raise ValueError(f"feedback features differ in width: {widths}")
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in filled]) for name in COLUMN_DTYPES
        }
        features = np.concatenate(tables) if len(tables) == len(filled) else None
        return cls(**columns, features=features)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Feedback:
        """The rows a mask, an index array or a slice picks."""
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in COLUMN_DTYPES}
        return Feedback(**columns, features=None if self.features is None else self.features[rows])

    def with_scores(self, scores: ArrayLike) -> Feedback:
        """The same tokens with ``scores`` float64 [n] in place of ``u``."""
        return dataclasses.replace(self, u=np.asarray(scores, dtype=np.float64))

    @property
    def weighted_beta(self) -> NDArray[np.float64]:
        """Unbiased estimate of each token's beta, float64 [n]: ``known * weight * beta``."""
        return np.where(self.known, self.weight * np.where(self.known, self.beta, 0.0), 0.0)


def _require_unit_interval(name: str, values: NDArray[np.float64]) -> None:
    """Refuse anything outside [0, 1]; NaN fails the comparison and is refused with it."""
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        raise ValueError(
            f"feedback column {name} must lie in [0, 1], got {values[wrong][0]} "
            f"in {int(wrong.sum())} of {len(values)} rows"
        )
