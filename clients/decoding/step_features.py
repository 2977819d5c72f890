"""What the small model's step already yields, as features for a learned router.

They cost no further pass: the draft's uncertainty at several temperatures, margin,
entropy and tail masses of the distribution, position, a projection of the last hidden state, and
the drafted token's own embedding. The projections are drawn from a fixed seed, so all clients see
the same coordinates without exchanging them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Features = NDArray[np.float32]

_TEMPERATURES = (0.5, 1.0, 1.5, 2.0)
_TAILS = (2, 3, 5, 10, 32)

SCALAR_FEATURES = (
    "log-top-1",
    "log-top-2",
    "log-top-3",
    "log-margin",
    "entropy",
    *(f"closed-form-{temperature}" for temperature in _TEMPERATURES),
    *(f"log-tail-{size}" for size in _TAILS),
    "log-draft",
    "position",
    "log-position",
)
"""Names of the leading columns of :class:`StepFeatures`, in order; natural logarithms."""

HISTORY_FEATURES = (
    "bigram-agrees",
    "bigram-differs",
    "trigram-agrees",
    "trigram-differs",
    "log-times-drafted-before",
    "log-follower-over-draft",
    "follower",
)
"""Names of the history columns: what followed the last time the text was at this point.

The follower is the token after the latest earlier place with the same last two tokens, or, failing
that, the same last one. A large model copies such continuations more reliably than a small one,
so a draft that differs from the follower is suspect.
"""

TRACE_FEATURES = tuple(
    f"{window}-{what}"
    for window in ("mean", "fast", "slow", "last", "before-last")
    for what in ("surprise", "doubt", "agreed")
)
"""Names of the trace columns: how well the small model foretold the text so far.

Means over all tokens and over the last few (decay .7 and .9 a token) of the three numbers of
:mod:`clients.decoding.trace`, and those of the last two tokens. Zero where nothing is known.
"""

_FAST, _SLOW = 0.7, 0.9
_USUAL = (3.0, 0.6, 0.4)

# Mean and standard deviation of the scalar columns on AG News with the built-in small model. They
# only bring columns to a common size, so another model or text shifts them without harm.
_MEAN: tuple[float, ...] = (-1.63, -2.83, -3.38, 1.2, 3.86, 0.39, 0.7, 0.87, 0.95)
_MEAN += (-0.81, -0.95, -1.12, -1.35, -1.81, -1.63, 0.69, 3.27)
_SCALE: tuple[float, ...] = (0.99, 1.02, 1.06, 1.43, 1.72, 0.29, 0.28, 0.18, 0.09)
_SCALE += (1.18, 1.31, 1.44, 1.5, 1.56, 0.99, 0.44, 0.92)

_LEAST_TAIL = 1e-6


@dataclass(frozen=True)
class StepFeatures:
    """Turns one step of the small model into what the router sees.

    Parameters
    ----------
    hidden_size : int
        Width of the hidden state, >= 1.
    projection : int
        Columns kept of the hidden state, and again of the draft's embedding: all of them if
        ``hidden_size`` is no larger, a Gaussian random projection otherwise. 0 leaves both out.
    embedding_size : int
        Width of the token embeddings; 0 leaves the drafted token's identity out.
    history : bool
        Add :data:`HISTORY_FEATURES`, which need the text so far.
    trace : bool
        Add :data:`TRACE_FEATURES`, which need its trace.
    seed : int
        Seed of the projections, the same on every client.
    """

    hidden_size: int
    projection: int = 128
    embedding_size: int = 0
    history: bool = False
    trace: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("hidden_size", 1), ("projection", 0), ("embedding_size", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def count(self) -> int:
        """Number of columns f."""
        hidden = min(self.hidden_size, self.projection)
        history = len(HISTORY_FEATURES) if self.history else 0
        history += len(TRACE_FEATURES) if self.trace else 0
        drafted = min(self.embedding_size, self.projection)
        return len(SCALAR_FEATURES) + history + hidden + drafted

    @torch.inference_mode()
    def __call__(
        self,
        logits: Tensor,
        hidden: Tensor,
        draft: Tensor,
        positions: Tensor | NDArray[np.int64],
        embeddings: Tensor | None = None,
        tokens: Tensor | NDArray[np.int64] | None = None,
        lengths: Tensor | NDArray[np.int64] | None = None,
        traces: Tensor | NDArray[np.float32] | None = None,
    ) -> Features:
        """Features of each row of a step.

        Parameters
        ----------
        logits : float [rows, vocab]
            Raw logits, vocab >= 2.
        hidden : float [rows, hidden_size]
            Last hidden state, the one the logits come from.
        draft : int64 [rows]
            Drafted token.
        positions : int64 [rows]
            Number of tokens before the drafted one.
        embeddings : float [vocab, embedding_size], optional
            Input embeddings of the small model; needed if ``embedding_size`` > 0.
        tokens : int64 [rows, longest], optional
            Texts so far, left-aligned; needed with ``history``.
        lengths : int64 [rows], optional
            Tokens of each text, >= 1; needed with ``history`` and ``trace``.
        traces : float32 [rows, longest, 3], optional
            See :mod:`clients.decoding.trace`, NaN where unknown; needed with ``trace``.

        Returns
        -------
        float32 [rows, f]
            Finite for finite input.

        Raises
        ------
        ValueError
            On shapes that disagree.
        """
        rows = self._checked_rows(logits, hidden, draft, positions)
        places = torch.as_tensor(positions, device=logits.device).float()
        log_probs = torch.log_softmax(logits.float(), dim=1)
        columns = [_scalars(logits.float(), log_probs, draft, places)]
        if self.history:
            if tokens is None or lengths is None:
                raise ValueError("history features need tokens and lengths")
            text = torch.as_tensor(tokens, device=logits.device)
            length = torch.as_tensor(lengths, device=logits.device)
            if text.ndim != 2 or len(text) != rows or length.shape != (rows,):
                raise ValueError(f"tokens must be [{rows}, longest] and lengths [{rows}]")
            columns.append(_history(log_probs, draft, text, length))
        if self.trace:
            if traces is None or lengths is None or traces.ndim != 3 or len(traces) != rows:
                raise ValueError(f"trace features need traces [{rows}, longest, 3] and lengths")
            past = torch.as_tensor(traces, device=logits.device).float()
            columns.append(_past(past, torch.as_tensor(lengths, device=logits.device)))
        if self.projection:
            columns.append(self._project(hidden.float(), 0))
        if self.projection and self.embedding_size:
            if embeddings is None or embeddings.shape[1] != self.embedding_size:
                raise ValueError(f"embeddings must be [vocab, {self.embedding_size}]")
            columns.append(self._project(embeddings[draft].float(), 1))
        return torch.cat(columns, dim=1).cpu().numpy()

    def _checked_rows(
        self,
        logits: Tensor,
        hidden: Tensor,
        draft: Tensor,
        positions: Tensor | NDArray[np.int64],
    ) -> int:
        """Rows of a step, whose tensors must agree on them."""
        rows = len(logits)
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError(f"logits must be [rows, vocab >= 2], got {tuple(logits.shape)}")
        if hidden.shape != (rows, self.hidden_size):
            raise ValueError(
                f"hidden must be [{rows}, {self.hidden_size}], got {tuple(hidden.shape)}"
            )
        if draft.shape != (rows,) or positions.shape != (rows,):
            raise ValueError(f"draft and positions must be [{rows}]")
        return rows

    def _project(self, vectors: Tensor, stream: int) -> Tensor:
        # Root mean square 1 a row, so that models with other norms give features of one size.
        size = vectors.pow(2).mean(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
        unit = vectors / size
        if vectors.shape[1] <= self.projection:
            return unit
        matrix = _projection(vectors.shape[1], self.projection, self.seed, stream)
        return unit @ matrix.to(unit.device)


def _scalars(logits: Tensor, log_probs: Tensor, draft: Tensor, positions: Tensor) -> Tensor:
    """Leading columns, standardised: float32 [rows, len(SCALAR_FEATURES)]."""
    probs = log_probs.exp()
    largest = probs.topk(min(max(_TAILS), logits.shape[1]), dim=1).values
    top = largest.new_full((len(logits), 3), _LEAST_TAIL)
    top[:, : largest.shape[1]] = largest[:, :3]
    log_top = top.clamp_min(_LEAST_TAIL).log()
    columns = [log_top[:, 0], log_top[:, 1], log_top[:, 2], log_top[:, 0] - log_top[:, 1]]
    columns.append(-torch.xlogy(probs, probs).sum(dim=1))
    for temperature in _TEMPERATURES:
        heated = torch.softmax(logits / temperature, dim=1)
        columns.append(1 - heated.gather(1, draft[:, None])[:, 0])
    mass = largest.cumsum(dim=1)
    for size in _TAILS:
        tail = 1 - mass[:, min(size, mass.shape[1]) - 1]
        columns.append(tail.clamp_min(_LEAST_TAIL).log())
    columns.append(log_probs.gather(1, draft[:, None])[:, 0].clamp_min(-30.0))
    columns += [positions / 50, torch.log1p(positions)]
    raw = torch.stack(columns, dim=1)
    return (raw - raw.new_tensor(_MEAN)) / raw.new_tensor(_SCALE)


def _history(log_probs: Tensor, draft: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
    """:data:`HISTORY_FEATURES` of each row, float32 [rows, 7]."""
    place = torch.arange(tokens.shape[1], device=tokens.device)[None]
    last = tokens.gather(1, (lengths - 1)[:, None])
    before_last = tokens.gather(1, (lengths - 2).clamp_min(0)[:, None])
    # Earlier places only: the last token itself has no follower yet.
    bigram = (tokens == last) & (place < (lengths - 1)[:, None])
    shifted = torch.cat([tokens.new_full((len(tokens), 1), -1), tokens[:, :-1]], dim=1)
    trigram = bigram & (shifted == before_last)

    def follower(match: Tensor) -> tuple[Tensor, Tensor]:
        latest = torch.where(match, place, -1).amax(dim=1)
        after = (latest + 1).clamp(max=tokens.shape[1] - 1)
        return latest >= 0, tokens.gather(1, after[:, None])[:, 0]

    has_two, after_two = follower(bigram)
    has_three, after_three = follower(trigram)
    copied = torch.where(has_three, after_three, after_two)
    copied_log = log_probs.gather(1, copied[:, None])[:, 0]
    draft_log = log_probs.gather(1, draft[:, None])[:, 0]
    times = ((tokens == draft[:, None]) & (place < lengths[:, None])).sum(dim=1)
    zero = draft_log.new_zeros(())
    columns = [
        (has_two & (after_two == draft)).float(),
        (has_two & (after_two != draft)).float(),
        (has_three & (after_three == draft)).float(),
        (has_three & (after_three != draft)).float(),
        torch.log1p(times.float()),
        torch.where(has_two, (copied_log - draft_log).clamp(-30, 30) / 3, zero),
        torch.where(has_two, copied_log.exp(), zero),
    ]
    return torch.stack(columns, dim=1)


def _past(traces: Tensor, lengths: Tensor) -> Tensor:
    """:data:`TRACE_FEATURES` of each row, float32 [rows, 15]."""
    age = lengths[:, None] - 1 - torch.arange(traces.shape[1], device=traces.device)[None]
    known = (age >= 0) & ~traces[:, :, 0].isnan()
    values = torch.where(known[:, :, None], traces, traces.new_zeros(()))
    count = known.sum(dim=1, keepdim=True)
    # Surprise is in nats; the others lie in [0, 1].
    size = traces.new_tensor([1 / 3, 1.0, 1.0])
    mean = values.sum(dim=1) / count.clamp_min(1) - traces.new_tensor(_USUAL)
    windows = [mean * (count > 0) * traces.new_tensor([1.0, 2.0, 1.0])]
    for decay in (_FAST, _SLOW):
        weight = (1 - decay) * decay ** age.clamp_min(0).float()
        windows.append(torch.einsum("rt,rtk->rk", weight * known, values) * size)
    for back in (0, 1):
        windows.append((values * (age == back)[:, :, None]).sum(dim=1) * size)
    return torch.cat(windows, dim=1)


@lru_cache(maxsize=8)
def _projection(size: int, columns: int, seed: int, stream: int) -> Tensor:
    """Gaussian projection float32 [size, columns] that keeps the size of a unit entry."""
    # numpy's generator gives the same numbers on every platform, torch's need not.
    matrix = np.random.default_rng([seed, stream]).standard_normal((size, columns))
    return torch.from_numpy((matrix / np.sqrt(size)).astype(np.float32))
