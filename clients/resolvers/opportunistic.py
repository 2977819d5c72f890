"""When a device asks its peers before the LLM (FedHLM eq. 12-13).

Eq. 13 asks while ``p_hit >= C_P2P / C_LLM``. Costs are measured as they occur and priced in the
user's unit; wrong hits cost something too; ``p_hit`` is estimated for each band of uncertainty,
with old outcomes fading, and starts from a first guess: by context, the share of contexts that
peers are known to meet as well (`clients.resolvers.introduction`), so that strangers never ask.

What is never asked can never recover, so a little is spent for the sake of knowing, within a
budget of bytes that holds from the first message on: fingerprints, and questions about a slice of
contexts. The slice is the same for every device of a run. Devices that explored at random, a share
``e`` each, would find only ``e`` of what their peers explored; like this they find all of it, so
the slice shows at the price of ``e`` what asking everything would bring.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.resolvers.hits import EXPLORE_EDGE, audit_draws
from hlm.arrays import BoolArray, FloatArray
from hlm.peers.cost import PeerCosts
from hlm.randomness import DrawKeys

Sketches = NDArray[np.uint8]


@dataclass(frozen=True)
class Price:
    """What an exchange costs, in the user's unit; linear in all that can be counted.

    Bytes: ``Price(per_byte=1)``. Milliseconds on a link: ``Price(per_message=round trip in ms,
    per_byte=8000 / (bit/s))``. Money: ``Price(per_token=price of a verified token)``.

    Attributes
    ----------
    per_message, per_byte, per_token : float
        Each at least 0.
    """

    per_message: float = 0.0
    per_byte: float = 0.0
    per_token: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} = {value}: must be finite and at least 0")

    def of_token(self, messages: float, message_bytes: float, tokens: float) -> float:
        """Cost of one of `tokens` tokens that shared messages and bytes."""
        shared = self.per_message * messages + self.per_byte * message_bytes
        return shared / max(tokens, 1) + self.per_token


BYTES = Price(per_byte=1.0)


@dataclass(frozen=True)
class OpportunisticConfig:
    """The rule's constants.

    Attributes
    ----------
    edge, llm : Price
        C_P2P and C_LLM, in one unit.
    error : float
        c_err, cost of a wrong token in the same unit; 0 gives eq. 13 as written.
    bands : int
        Equal bands of uncertainty with an estimate each.
    memory : float
        Outcomes after which an old one counts 1/e.
    prior_hit, prior_weight : float
        First guess of p_hit in each band, where nothing better is known (see
        `OpportunisticRule.expect`), and the number of outcomes that the guess is worth: how long
        an untried edge is given a chance.
    explore : float
        Share of contexts in the slice that is explored, in [0, 1].
    overhead, credit : float
        Exploration may cost `credit` bytes and this share, in [0, 1], of all bytes so far: what
        two devices need to find out about each other at the start, and how much of the traffic
        may go into finding out again.
    first_edge_bytes, first_llm_bytes : float
        Guessed bytes of a token before there are measured ones.
    """

    edge: Price = BYTES
    llm: Price = BYTES
    error: float = 0.0
    bands: int = 4
    memory: float = 128.0
    prior_hit: float = 0.5
    prior_weight: float = 16.0
    explore: float = 1 / 16
    overhead: float = 0.005
    credit: float = 36.0
    first_edge_bytes: float = 16.0
    first_llm_bytes: float = 12.0

    def __post_init__(self) -> None:
        for name in ("prior_hit", "explore", "overhead"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must lie in 0 .. 1")
        for name in ("memory", "prior_weight", "first_edge_bytes", "first_llm_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be above 0")
        for name, least in (("bands", 1), ("error", 0), ("credit", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {least}")


@dataclass
class _Mean:
    """Exponentially fading mean of a cost per token."""

    value: float
    weight: float = 0.0

    def add(self, value: float, weight: float, memory: float) -> None:
        kept = self.weight * np.exp(-weight / memory)
        self.value = float((self.value * kept + value * weight) / (kept + weight))
        self.weight = float(kept + weight)


@dataclass
class OpportunisticRule:
    """Eq. 13 with measured costs and hit probabilities, for one device in one cluster.

    Parameters
    ----------
    config : OpportunisticConfig
        Constants.
    """

    config: OpportunisticConfig = field(default_factory=OpportunisticConfig)
    explored_bytes: float = 0.0
    all_bytes: float = 0.0

    def __post_init__(self) -> None:
        self._edge = _Mean(0.0)
        self._edge_bytes = _Mean(self.config.first_edge_bytes)
        self._batch = _Mean(1.0)
        self._llm = _Mean(self.config.llm.of_token(1, self.config.first_llm_bytes, 1))
        self._forget()

    def _forget(self) -> None:
        self._asked = np.zeros(self.config.bands)
        self._hits = np.zeros(self.config.bands)
        self._guess = self.config.prior_hit

    def joined_cluster(self) -> None:
        """Start the estimates of p_hit anew, because the peers are others now."""
        self._forget()

    def expect(self, hit: float) -> None:
        """Let the first guess of p_hit, in [0, 1], be what the device found out without asking."""
        self._guess = float(np.clip(hit, 0.0, 1.0))

    @property
    def hit_probability(self) -> FloatArray:
        """Estimated p_hit of each band of uncertainty, float64 [bands]."""
        weight = self.config.prior_weight
        return np.asarray((self._hits + weight * self._guess) / (self._asked + weight))

    def costs(self, false_hit: float = 0.0) -> PeerCosts:
        """Present costs of a token in the user's unit; `false_hit` is the share of wrong hits."""
        edge = self._edge.value
        if not self._edge.weight:
            # Nobody was asked yet: a question would be about as many tokens as the LLM is sent.
            batch = self._batch.value
            edge = self.config.edge.of_token(1, self.config.first_edge_bytes * batch, batch)
        return PeerCosts(edge, self._llm.value, self.config.error, false_hit)

    def worth_asking(self, uncertainty: FloatArray, false_hit: float = 0.0) -> BoolArray:
        """Eq. 13 for each row (float64 [n] in [0, 1]), bool [n]."""
        least = self.costs(false_hit).least_hit_probability()
        return np.asarray((self.hit_probability >= least)[self._band(uncertainty)])

    def explored(self, sketches: Sketches, keys: DrawKeys, false_hit: float = 0.0) -> BoolArray:
        """Rows asked for the sake of knowing, bool [n].

        None where even certain hits would not pay, nor where peers are known to meet nothing that
        this device meets, and no more than the budget allows.

        Parameters
        ----------
        sketches : ndarray of uint8 [n, w]
            Contexts; of width 0 where peers go by step, then rows are drawn.
        keys : DrawKeys
            Of the n rows.
        false_hit : float
            Share of wrong hits.
        """
        if self._guess == 0 or self.costs(false_hit).least_hit_probability() > 1:
            return np.zeros(keys.rows, np.bool_)
        if not sketches.shape[1]:
            chosen = np.asarray(audit_draws(keys, EXPLORE_EDGE) < self.config.explore)
        else:
            # A multiplicative hash of eight sketch bits: few, so that near contexts mostly agree.
            start = sketches[:, 0].astype(np.uint64) + np.uint64(keys.seed % 251)
            mixed = (start * np.uint64(40503)) % np.uint64(65536)
            chosen = np.asarray(mixed < self.config.explore * 65536)
        each = self._edge_bytes.value
        return chosen & (np.cumsum(chosen) * each <= max(self.budget, 0.0))

    @property
    def budget(self) -> float:
        """Bytes that exploration may still cost; negative when it has cost too much."""
        allowed = self.config.credit + self.config.overhead * self.all_bytes
        return allowed - self.explored_bytes

    def note_hits(self, uncertainty: FloatArray, hits: BoolArray, weight: float = 1.0) -> None:
        """Learn from rows that were asked (float64 [n]) which of them the peers decided.

        Each counts as `weight` outcomes, > 0.
        """
        band = self._band(uncertainty)
        asked = weight * np.bincount(band, minlength=self.config.bands)
        fading = np.exp(-asked / self.config.memory)
        self._asked = self._asked * fading + asked
        found = weight * np.bincount(band[hits], minlength=self.config.bands)
        self._hits = self._hits * fading + found

    def note_edge(
        self, messages: int, message_bytes: int, tokens: int, explored: float = 0.0
    ) -> None:
        """Learn what asking about `tokens` tokens cost; a share of them was `explored`."""
        self.all_bytes += message_bytes
        self.explored_bytes += explored * message_bytes
        if tokens:
            cost = self.config.edge.of_token(messages, message_bytes, tokens)
            self._edge.add(cost, tokens, self.config.memory)
            self._edge_bytes.add(message_bytes / tokens, tokens, self.config.memory)

    def note_llm(self, messages: int, message_bytes: int, tokens: int) -> None:
        """Learn what the LLM's decision on `tokens` tokens cost."""
        self.all_bytes += message_bytes
        if tokens:
            cost = self.config.llm.of_token(messages, message_bytes, tokens)
            self._llm.add(cost, tokens, self.config.memory)
            self._batch.add(tokens / max(messages, 1), tokens, self.config.memory)

    def state(self) -> dict[str, NDArray[Any]]:
        """All that was learnt: ``hits`` and ``asked`` float64 [bands], ``costs`` float64 [11]."""
        costs = [
            self._edge.value, self._edge.weight, self._llm.value, self._llm.weight,
            self._edge_bytes.value, self._edge_bytes.weight,
            self._batch.value, self._batch.weight,
            self.explored_bytes, self.all_bytes, self._guess,
        ]  # fmt: skip
        return {"hits": self._hits, "asked": self._asked, "costs": np.array(costs)}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take over what `state` returned.

        Raises
        ------
        ValueError
            If it is of other bands, or not finite.
        """
        hits, asked, costs = (np.asarray(state[name]) for name in ("hits", "asked", "costs"))
        bands = (self.config.bands,)
        if hits.shape != bands or asked.shape != bands or costs.shape != (11,):
            raise ValueError(f"state has {hits.shape[0]} bands; this rule has {bands[0]}")
        if not all(np.isfinite(part).all() for part in (hits, asked, costs)):
            raise ValueError("state of the opportunistic rule is not finite")
        self._hits, self._asked = hits.astype(np.float64), asked.astype(np.float64)
        self._edge = _Mean(float(costs[0]), float(costs[1]))
        self._llm = _Mean(float(costs[2]), float(costs[3]))
        self._edge_bytes = _Mean(float(costs[4]), float(costs[5]))
        self._batch = _Mean(float(costs[6]), float(costs[7]))
        self.explored_bytes, self.all_bytes = float(costs[8]), float(costs[9])
        self._guess = float(costs[10])

    def _band(self, uncertainty: FloatArray) -> NDArray[np.int64]:
        bands = self.config.bands
        return np.clip((uncertainty * bands).astype(np.int64), 0, bands - 1)
