"""The large model as an engine: many texts at once, each with its own key-value memory.

The engine knows nothing of drafts or devices. It is told which tokens a session has and at which
positions the model's prediction is wanted, and it runs as few and as full forward passes as it
can. Sessions that were not used for longest lose their memory when the table is full; whoever
owns them finds out through `held` and sends the tokens again.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from hlm.arrays import IntArray
from hlm.reading import agreement
from hlm.reading.plain import Passage
from hlm.verifiers import Need
from servers.backend import BackendStats, Feed, Owner, next_to_go
from servers.engine.ways import best_way


class EngineError(ValueError):
    """A request the engine cannot serve; the message names the field and what is allowed."""


@dataclass
class _Session:
    slot: int
    tokens: IntArray
    owner: Owner
    computed: int = 0  # tokens 0 .. computed - 1 are in the key-value cache


@dataclass
class _Work:
    session: _Session
    wanted: IntArray
    passage: Passage = field(init=False)

    def __post_init__(self) -> None:
        # The logits of token p come out of feeding token p - 1, so it must be fed (again).
        first = min(self.session.computed, int(self.wanted[0]) - 1)
        text = self.session.tokens[: int(self.wanted[-1])]
        self.passage = Passage(self.session.slot, text, first, self.wanted)


class Engine:
    """Batched next-token prediction for many sessions with one causal language model.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Any causal model; how it is read is found out by trial (`servers.engine.ways`).
    max_sessions : int
        Most sessions with key-value memory at a time, >= 1.
    max_context : int
        Most tokens a session may hold, >= 2 and at most the model's own limit.
    max_batch_tokens : int
        Most tokens, padding included, in one forward pass.
    pace : float
        Least seconds that a call of `score` takes which reads anything, >= 0: so a small model
        stands in for a large one, whose step takes as long for one text as for many.

    Raises
    ------
    EngineError
        When a limit is out of range for the model.
    ModelRefusedError
        When no way of reading the model gives what the plain model gives.

    Attributes
    ----------
    way : servers.engine.ways.EngineWay
        How the model is read.
    """

    offers = Need.PROBS

    def __init__(
        self,
        model: PreTrainedModel,
        max_sessions: int = 64,
        max_context: int = 128,
        max_batch_tokens: int = 8192,
        pace: float = 0.0,
    ) -> None:
        if max_sessions < 1:
            raise EngineError(f"max_sessions = {max_sessions}: must be at least 1")
        limit = context_limit(model)
        if not 2 <= max_context <= limit:
            raise EngineError(
                f"max_context = {max_context}: must lie in 2 .. {limit}, the longest context of "
                f"{model.config.name_or_path or type(model).__name__}"
            )
        model.train(False)
        self.model = model
        self.max_sessions = max_sessions
        self.max_context = max_context
        self.max_batch_tokens = max_batch_tokens
        self.pace = pace
        self.stats = BackendStats()
        self.vocab = int(model.config.get_text_config().vocab_size)
        self._sessions: OrderedDict[Hashable, _Session] = OrderedDict()
        slots = min(8, max_sessions)
        self._free = list(range(slots))
        self._slots = slots
        self.way = best_way(model, max_context)
        self.reading, self.slow = self.way.name, self.way.is_plain
        self._reader = self.way.reader(slots, max_context)

    def held(self, session: Hashable) -> int:
        """Tokens the engine holds for a session (0 when unknown or evicted)."""
        known = self._sessions.get(session)
        return 0 if known is None else len(known.tokens)

    def computed(self, session: Hashable) -> int:
        """Tokens of a session that were read already (0 when unknown)."""
        known = self._sessions.get(session)
        return 0 if known is None else known.computed

    def tokens(self, session: Hashable) -> IntArray:
        """The tokens of a held session, int64 [held]; not to be changed."""
        return self._sessions[session].tokens

    def append(self, session: Hashable, token: int) -> None:
        """Add a decided token to a held session; it is fed with the next request."""
        known = self._sessions[session]
        if len(known.tokens) < self.max_context:
            known.tokens = np.append(known.tokens, np.int64(token))

    def forget(self, session: Hashable) -> None:
        """Free a session's memory; unknown sessions are ignored."""
        known = self._sessions.pop(session, None)
        if known is not None:
            self._free.append(known.slot)

    @torch.inference_mode()
    def score(self, feeds: Sequence[Feed]) -> list[torch.Tensor | None]:
        """Take in new tokens and predict at the wanted positions.

        Parameters
        ----------
        feeds : sequence of Feed
            One per session, sessions distinct.

        Returns
        -------
        list of torch.Tensor or None
            float32 [m, vocab] logits for each feed, on the model's device. None where the session
            lost its place to others of the same call, which happens only if there are more than
            `max_sessions` of them: its tokens are then needed from the start.

        Raises
        ------
        EngineError
            When a feed leaves a gap, is too long, asks for a position that it has not reached,
            or names a token outside the vocabulary. Nothing is changed then.
        """
        for feed in feeds:
            self._check(feed)
        tokens = np.concatenate([feed.tokens for feed in feeds]) if feeds else np.empty(0)
        if len(tokens) and not (0 <= int(tokens.min()) and int(tokens.max()) < self.vocab):
            raise EngineError(f"tokens: ids must lie in 0 .. {self.vocab - 1}")
        if len({feed.session for feed in feeds}) != len(feeds):
            raise EngineError("feeds: each session may appear only once")
        begun = time.perf_counter()
        results: list[torch.Tensor | None] = []
        most = self._wave(feeds)
        for begin in range(0, len(feeds), most):
            results += self._score_wave(feeds[begin : begin + most])
        left = self.pace - (time.perf_counter() - begun)
        if left > 0 and any(len(feed.wanted) for feed in feeds):
            time.sleep(left)
            self.stats.seconds += left
        return results

    def _check(self, feed: Feed) -> None:
        held, end = self.held(feed.session), feed.start + len(feed.tokens)
        if not 0 <= feed.start <= held:
            raise EngineError(f"start = {feed.start}: session {feed.session!r} holds {held} tokens")
        if end > self.max_context:
            raise EngineError(
                f"tokens: session {feed.session!r} would hold {end} tokens, "
                f"at most {self.max_context} are allowed"
            )
        if len(feed.wanted) and not (
            1 <= int(feed.wanted[0])
            and int(feed.wanted[-1]) <= end
            and (len(feed.wanted) == 1 or bool((np.diff(feed.wanted) > 0).all()))
        ):
            raise EngineError(f"wanted: positions must increase within 1 .. {end}")

    def _wave(self, feeds: Sequence[Feed]) -> int:
        """How many feeds are served at a time: beside others, none of one's own fill all slots."""
        half = max(1, self.max_sessions // 2)
        if len(feeds) > half:
            for depth in (1, 2):  # of a tenant, and of a device
                of = Counter(feed.owner[:depth] for feed in feeds)
                held = {session.owner[:depth] for session in self._sessions.values()}
                if len(of.keys() | held) > 1 and max(of.values()) > half:
                    return half
        return self.max_sessions

    def _score_wave(self, feeds: Sequence[Feed]) -> list[torch.Tensor | None]:
        current = {feed.session for feed in feeds}
        nothing = torch.empty(0, self.vocab, device=self.model.device)
        results: list[torch.Tensor | None] = [nothing] * len(feeds)
        work: list[tuple[int, _Work]] = []
        for index, feed in enumerate(feeds):
            if feed.start > self.held(feed.session):
                results[index] = None
                continue
            session = self._take_in(feed, current)
            if len(feed.wanted):
                work.append((index, _Work(session, feed.wanted)))
        for group in self._groups(work):
            for (index, _), logits in zip(group, self._forward([w for _, w in group]), strict=True):
                results[index] = logits
        return results

    def _take_in(self, feed: Feed, current: set[Hashable]) -> _Session:
        session = self._sessions.get(feed.session)
        if session is None:
            slot = self._free_slot(current, feed.owner)
            session = _Session(slot, np.empty(0, np.int64), feed.owner)
            self._sessions[feed.session] = session
        self._sessions.move_to_end(feed.session)
        session.tokens = np.concatenate([session.tokens[: feed.start], feed.tokens])
        session.computed = min(session.computed, feed.start)
        return session

    def _free_slot(self, current: set[Hashable], owner: Owner) -> int:
        if not self._free and self._slots < self.max_sessions:
            old, self._slots = self._slots, min(2 * self._slots, self.max_sessions)
            self._reader.grow(self._slots)
            self._free = list(range(old, self._slots))
        if not self._free:
            owners = {key: session.owner for key, session in self._sessions.items()}
            self.forget(next_to_go(owners, owner, self.max_sessions, current))
            self.stats.evictions += 1
        # Lowest first keeps the slots of one batch adjacent, which spares a copy.
        self._free.sort()
        return self._free.pop(0)

    def _groups(self, work: list[tuple[int, _Work]]) -> list[list[tuple[int, _Work]]]:
        """Split rows so that neither padding nor one forward pass grows without bound."""
        groups: list[list[tuple[int, _Work]]] = []
        widest = waste = 0
        most = self._reader.most_waste
        for item in sorted(work, key=lambda entry: -len(entry[1].passage.new)):
            length = len(item[1].passage.new)
            waste += widest - length
            full = bool(groups) and (len(groups[-1]) + 1) * widest > self.max_batch_tokens
            if not groups or waste > most or full:
                groups.append([])
                widest, waste = length, 0
            groups[-1].append(item)
        return groups

    def _forward(self, rows: list[_Work]) -> list[torch.Tensor]:
        """One forward pass over rows with new tokens; logits at each row's wanted places."""
        begin = time.perf_counter()
        order = sorted(range(len(rows)), key=lambda i: rows[i].session.slot)
        ordered = [rows[i] for i in order]
        logits = self._reader.read([row.passage for row in ordered])
        for row in ordered:
            row.session.computed = len(row.passage.text)
        counts = [len(row.passage.new) for row in ordered]
        self.stats.passes += 1
        self.stats.tokens += sum(counts)
        self.stats.padded_tokens += len(ordered) * max(counts)
        self.stats.seconds += time.perf_counter() - begin
        parts = torch.split(logits, [len(row.wanted) for row in ordered])
        found = list(parts)
        for index, part in zip(order, parts, strict=True):
            found[index] = part
        return found


def context_limit(model: PreTrainedModel) -> int:
    """Longest context the engine can give a model, in tokens (`hlm.reading.agreement`)."""
    return agreement.context_limit(model.config.get_text_config())
