"""A device's own memory of tokens: the first to be asked, at no byte at all.

``paper`` mode is FedHLM V-A-3 as written: it holds the tokens "previously inferred or received",
which are those the device kept and those that peers or the LLM decided, and a draft is accepted if
its embedding is close to that of any of them. It then says little about the context: a cached
token is always close to itself. ``context`` mode (default) holds what the LLM decided, by the small
model's last hidden state: the nearest entry confirms the draft past one gate, and replaces it past
a stricter one, because a neighbour that agrees with the draft is right far more often
(``docs/edge.md``).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clients.records import Stage, Traffic
from clients.resolvers.chain import Asked, Escalation, Resolution
from clients.resolvers.hits import AUDIT_CACHE, AuditedTier, verified_rows
from hlm.arrays import IntArray
from hlm.peers.agreement import unit_rows

FloatArray = NDArray[np.float32]

MODES = ("paper", "context")
_SAME_CONTEXT = 0.9999
_CHUNK = 1 << 22
"""Most cosines computed at once: 16 MB."""


@dataclass(frozen=True)
class CacheConfig:
    """What a cache holds and when it answers.

    Attributes
    ----------
    mode : {"paper", "context"}
        `cache-mode`.
    capacity : int
        Most entries, >= 1.
    similarity : float
        Theta: cosine of token embeddings from which a draft is accepted (`paper`).
    context_gate, reuse_gate : float
        Cosine of contexts from which an entry confirms the same draft, and replaces another
        (`context`); the first is at most the second.
    """

    mode: Literal["paper", "context"] = "context"
    capacity: int = 1024
    similarity: float = 0.9
    context_gate: float = 0.98
    reuse_gate: float = 0.995

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"cache-mode = {self.mode!r}: allowed are {', '.join(MODES)}")
        if self.capacity < 1:
            raise ValueError(f"cache-size = {self.capacity}: must be at least 1")
        if not -1 <= self.similarity <= 1:
            raise ValueError(f"similarity = {self.similarity}: a cosine lies in -1 .. 1")
        if not -1 <= self.context_gate <= self.reuse_gate <= 1:
            raise ValueError(
                f"context-gate = {self.context_gate}, reuse-gate = {self.reuse_gate}: need "
                "-1 <= context-gate <= reuse-gate <= 1"
            )


class TokenCache:
    """Verified tokens by context, bounded, least recently used out.

    Parameters
    ----------
    embeddings : ndarray [vocab, size]
        The small model's token embeddings.
    config : CacheConfig
        See there.
    hidden_size : int or None
        Length of a context; None is that of an embedding.

    Attributes
    ----------
    copies : int
        Answers so far that came from a text with the same prompt: in a small corpus a prompt comes
        again, and what its earlier text had says nothing about new prompts.
    """

    def __init__(
        self,
        embeddings: NDArray[np.floating],
        config: CacheConfig | None = None,
        hidden_size: int | None = None,
    ) -> None:
        self.config = CacheConfig() if config is None else config
        self.embeddings = unit_rows(embeddings)
        size = self.embeddings.shape[1]
        if self.config.mode == "context" and hidden_size is not None:
            size = hidden_size
        self._keys = np.zeros((0, size), np.float32)
        self._tokens = np.zeros(0, np.int64)
        self._used = np.zeros(0, np.int64)
        self._prompts = np.zeros(0, np.int64)
        self._clock = 0
        self.copies = 0

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._tokens)

    @property
    def tokens(self) -> IntArray:
        """Cached tokens int64 [entries]."""
        return self._tokens

    def look_up(
        self, hidden: FloatArray | None, drafts: IntArray, prompts: IntArray | None = None
    ) -> IntArray:
        """What the cache would put in each place.

        Parameters
        ----------
        hidden : ndarray of float32 [n, size] or None
            Contexts; needed in `context` mode.
        drafts : ndarray of int64 [n]
            The device's own tokens.
        prompts : ndarray of int64 [n], optional
            A number >= 0 for the prompt of each text.

        Returns
        -------
        ndarray of int64 [n]
            -1 where the cache has no answer. Contexts that are not finite have none.
        """
        if not len(self) or not len(drafts):
            return np.full(len(drafts), -1, np.int64)
        keys, usable = self._queries(hidden, drafts)
        nearest, similarity = self._nearest(keys)
        if self.config.mode == "paper":
            hit = usable & (similarity >= self.config.similarity)
            found = np.where(hit, drafts, -1)
        else:
            found = self._tokens[nearest]
            same = found == drafts
            gate = np.where(same, self.config.context_gate, self.config.reuse_gate)
            hit = usable & (similarity >= gate)
            found = np.where(hit, found, -1)
        self._clock += 1
        self._used[nearest[hit]] = self._clock
        if prompts is not None:
            self.copies += int((self._prompts[nearest] == prompts)[hit].sum())
        return found

    def add(
        self, hidden: FloatArray | None, tokens: IntArray, prompts: IntArray | None = None
    ) -> None:
        """Remember tokens (int64 [n]) and, in `context` mode, contexts (float32 [n, size]).

        `prompts` as in `look_up`.
        """
        if not len(tokens):
            return
        keys, usable = self._queries(hidden, tokens)
        origins = np.full(len(tokens), -1) if prompts is None else prompts
        keys, tokens, origins = keys[usable], np.asarray(tokens)[usable], origins[usable]
        # Of equal contexts in one call the last counts.
        _, last = np.unique(keys[::-1], axis=0, return_index=True)
        kept = np.sort(len(keys) - 1 - last)[-self.config.capacity :]
        keys, tokens, origins = keys[kept], tokens[kept], origins[kept]
        self._clock += 1
        if len(self) and len(tokens):
            nearest, similarity = self._nearest(keys)
            known = similarity >= _SAME_CONTEXT
            self._tokens[nearest[known]] = tokens[known]
            self._used[nearest[known]] = self._clock
            self._prompts[nearest[known]] = origins[known]
            keys, tokens, origins = keys[~known], tokens[~known], origins[~known]
        self._make_room(len(tokens))
        self._keys = np.concatenate([self._keys, keys])
        self._tokens = np.concatenate([self._tokens, tokens])
        self._used = np.concatenate([self._used, np.full(len(tokens), self._clock)])
        self._prompts = np.concatenate([self._prompts, origins])

    def state(self) -> dict[str, NDArray[Any]]:
        """All entries as arrays: ``keys`` float32 [n, size], the others int64 [n]."""
        return {
            "keys": self._keys,
            "tokens": self._tokens,
            "used": self._used,
            "prompts": self._prompts,
        }

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take over entries from `state`, the most recently used if there are too many.

        Raises
        ------
        ValueError
            If arrays are missing, differ in length or width, or hold tokens out of range.
        """
        missing = {"keys", "tokens", "used", "prompts"} - set(state)
        if missing:
            raise ValueError(f"cache state lacks {', '.join(sorted(missing))}")
        keys = np.asarray(state["keys"], np.float32)
        tokens, used = np.asarray(state["tokens"], np.int64), np.asarray(state["used"], np.int64)
        prompts = np.asarray(state["prompts"], np.int64)
        shapes = {used.shape, tokens.shape, prompts.shape}
        if keys.shape != (len(tokens), self._keys.shape[1]) or len(shapes) > 1:
            raise ValueError(
                f"cache state has keys {keys.shape}, tokens {tokens.shape}, used {used.shape}, "
                f"prompts {prompts.shape}; expected [n, {self._keys.shape[1]}], [n], [n], [n]"
            )
        vocab = len(self.embeddings)
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab:
            raise ValueError(f"cache state has tokens outside 0 .. {vocab - 1}")
        if not np.isfinite(keys).all():
            raise ValueError("cache state has keys that are not finite")
        newest = np.sort(np.argsort(used, kind="stable")[-self.config.capacity :])
        self._keys, self._tokens, self._used = keys[newest], tokens[newest], used[newest]
        self._prompts = prompts[newest]
        self._clock = int(used.max(initial=0))

    def _queries(
        self, hidden: FloatArray | None, tokens: IntArray
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        if self.config.mode == "paper":
            keys = self.embeddings[tokens]
        elif hidden is None:
            raise ValueError("a cache by context needs the small model's hidden states")
        else:
            finite = np.isfinite(hidden).all(axis=1, keepdims=True)
            keys = unit_rows(np.where(finite, hidden, 0.0))
        return keys, np.asarray(keys.any(axis=1))

    def _nearest(self, keys: FloatArray) -> tuple[IntArray, FloatArray]:
        """Entry int64 [n] and cosine float32 [n] of the nearest; the oldest entry on ties."""
        nearest = np.empty(len(keys), np.int64)
        similarity = np.empty(len(keys), np.float32)
        rows = max(1, _CHUNK // len(self))
        for begin in range(0, len(keys), rows):
            cosines = keys[begin : begin + rows] @ self._keys.T
            best = cosines.argmax(axis=1)
            nearest[begin : begin + rows] = best
            similarity[begin : begin + rows] = cosines[np.arange(len(best)), best]
        return nearest, similarity

    def _make_room(self, new: int) -> None:
        leaving = len(self) + new - self.config.capacity
        if leaving > 0:
            kept = np.sort(np.argsort(self._used, kind="stable")[leaving:])
            self._keys, self._tokens = self._keys[kept], self._tokens[kept]
            self._used, self._prompts = self._used[kept], self._prompts[kept]


class CacheResolver:
    """The cache as the first link of the resolver chain (stage `cache`).

    Parameters
    ----------
    cache : TokenCache
        Filled with what the LLM decides; in `paper` mode with all tokens of the device's texts.
    audit_rate : float
        Share of hits that the LLM decides all the same.
    max_false_hits : float
        Share of wrong hits that closes the cache; 1: never.
    before_peers : bool
        Peers are asked next. While the cache is closed they get what it would have decided,
        apart from audited rows.
    """

    verifies = False

    def __init__(
        self,
        cache: TokenCache,
        audit_rate: float = 0.0,
        max_false_hits: float = 1.0,
        before_peers: bool = False,
    ) -> None:
        self.cache = cache
        self.before_peers = before_peers
        self.tier = AuditedTier(audit_rate, max_false_hits, AUDIT_CACHE)
        self.needs_hidden = cache.config.mode == "context"

    def resolve(self, escalation: Escalation) -> Resolution[None]:
        """Tokens the cache knows, apart from those that are audited."""
        drafts = escalation.draft.tokens.cpu().numpy()
        tokens = self.cache.look_up(_contexts(escalation), drafts, _prompts(escalation))
        if self.before_peers and self.tier.closed:
            tokens = np.where(self.tier.audited(escalation.keys), tokens, -1)
        withheld = self.tier.withheld(escalation, tokens)
        tokens = np.where(withheld >= 0, -1, tokens)
        stages = np.where(tokens >= 0, Stage.CACHE, Stage.UNRESOLVED).astype(np.int8)
        nothing = Resolution[None].none(len(tokens))
        return replace(nothing, tokens=tokens, stages=stages, withheld=withheld)

    def learn(
        self, escalation: Escalation, final: Resolution[Any], asked: Asked[None] | None
    ) -> Traffic:
        """Remember what was decided, and count wrong hits."""
        self.tier.judge(final, asked)
        verified = verified_rows(final)
        if self.cache.config.mode == "paper":
            self.inferred(final.tokens)
        elif verified.any():
            chosen = escalation.select(verified)
            self.cache.add(_contexts(chosen), final.tokens[verified], _prompts(chosen))
        return Traffic()

    def inferred(self, tokens: IntArray) -> None:
        """See tokens (int64 [n]) that the device kept by itself; `paper` mode remembers them."""
        if self.cache.config.mode == "paper":
            self.cache.add(None, tokens)


def _prompts(escalation: Escalation) -> IntArray:
    """A number for the prompt of each row, int64 [n]: the same tokens, the same number."""
    texts = escalation.texts
    names = {
        row: zlib.crc32(texts.tokens[row, : texts.prompt_lengths[row]].tobytes())
        for row in set(escalation.rows.tolist())
    }
    return np.array([names[row] for row in escalation.rows.tolist()], np.int64)


def _contexts(escalation: Escalation) -> FloatArray | None:
    if escalation.hidden is None:
        return None
    return np.asarray(escalation.hidden.float().cpu().numpy(), np.float32)
