"""When a device asks its peers before the LLM (FedHLM eq. 12-13).

Eq. 13 asks while ``p_hit >= C_P2P / C_LLM``. Costs are measured as they occur and priced in the
user's unit; wrong hits cost something too; ``p_hit`` is estimated for each band of uncertainty,
with old outcomes fading. What is never asked can never recover, so a little is asked for the sake
of knowing, within a budget.

Exploration is coordinated: a context is explored if its sketch falls into a slice of all
sketches that is the same for every device of a run. Devices that explored at random, a share
``e`` each, would find only ``e`` of what their peers explored; like this they find all of it, so
the slice shows at the price of ``e`` what asking everything would bring.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.hits import EXPLORE_EDGE, audit_draws
from hlm.cost import PeerCosts
from hlm.randomness import DrawKeys

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
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
        First guess of p_hit in each band, and the number of outcomes it is worth: how long an
        untried edge is given a chance.
    explore : float
        Share of contexts in the slice that is explored, in [0, 1].
    overhead : float
        Exploration rests while it has cost more than this share of all bytes, in [0, 1].
    first_edge_bytes, first_llm_bytes : float
        Guessed bytes of a token before there are measured ones.
    """

    edge: Price = BYTES
    llm: Price = BYTES
    error: float = 0.0
    bands: int = 4
    memory: float = 128.0
    prior_hit: float = 0.5
    prior_weight: float = 8.0
    explore: float = 1 / 16
    overhead: float = 0.005
    first_edge_bytes: float = 40.0
    first_llm_bytes: float = 16.0

    def __post_init__(self) -> None:
        for name in ("prior_hit", "explore", "overhead"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must lie in 0 .. 1")
        for name in ("memory", "prior_weight", "first_edge_bytes", "first_llm_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be above 0")
        if self.bands < 1 or self.error < 0:
            raise ValueError(f"bands = {self.bands}, error = {self.error}: need >= 1 and >= 0")


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
        self._edge = _Mean(self.config.edge.of_token(1, self.config.first_edge_bytes, 1))
        self._llm = _Mean(self.config.llm.of_token(1, self.config.first_llm_bytes, 1))
        self._forget()

    def _forget(self) -> None:
        # The first guess is as many made-up outcomes, which fade like real ones.
        self._asked = np.full(self.config.bands, float(self.config.prior_weight))
        self._hits = self._asked * self.config.prior_hit

    def joined_cluster(self) -> None:
        """Start the estimates of p_hit anew, because the peers are others now."""
        self._forget()

    @property
    def hit_probability(self) -> FloatArray:
        """Estimated p_hit of each band of uncertainty, float64 [bands]."""
        return np.asarray(self._hits / self._asked)

    def costs(self, false_hit: float = 0.0) -> PeerCosts:
        """Present costs of a token in the user's unit; `false_hit` is the share of wrong hits."""
        return PeerCosts(self._edge.value, self._llm.value, self.config.error, false_hit)

    def worth_asking(self, uncertainty: FloatArray, false_hit: float = 0.0) -> BoolArray:
        """Eq. 13 for each row (float64 [n] in [0, 1]), bool [n]."""
        least = self.costs(false_hit).least_hit_probability()
        return np.asarray((self.hit_probability >= least)[self._band(uncertainty)])

    def explored(self, sketches: Sketches, keys: DrawKeys, false_hit: float = 0.0) -> BoolArray:
        """Rows asked for the sake of knowing, bool [n].

        None while exploration is over its budget, nor where even certain hits would not pay.

        Parameters
        ----------
        sketches : ndarray of uint8 [n, w]
            Contexts; of width 0 where peers go by step, then rows are drawn.
        keys : DrawKeys
            Of the n rows.
        false_hit : float
            Share of wrong hits.
        """
        if self.costs(false_hit).least_hit_probability() > 1 or self.over_budget:
            return np.zeros(keys.rows, np.bool_)
        if not sketches.shape[1]:
            return np.asarray(audit_draws(keys, EXPLORE_EDGE) < self.config.explore)
        # A multiplicative hash of eight sketch bits: few, so that near contexts mostly agree.
        mixed = (sketches[:, 0].astype(np.uint64) + np.uint64(keys.seed % 251)) * np.uint64(40503)
        return np.asarray((mixed % np.uint64(65536)) < self.config.explore * 65536)

    @property
    def over_budget(self) -> bool:
        """Whether exploration has cost more than its share of all bytes."""
        return self.explored_bytes > self.config.overhead * self.all_bytes

    def note_hits(self, uncertainty: FloatArray, hits: BoolArray) -> None:
        """Learn from rows that were asked (float64 [n]) which of them the peers decided."""
        band = self._band(uncertainty)
        asked = np.bincount(band, minlength=self.config.bands)
        fading = np.exp(-asked / self.config.memory)
        self._asked = self._asked * fading + asked
        self._hits = self._hits * fading + np.bincount(band[hits], minlength=self.config.bands)

    def note_edge(
        self, messages: int, message_bytes: int, tokens: int, explored: float = 0.0
    ) -> None:
        """Learn what asking about `tokens` tokens cost; a share of them was `explored`."""
        self.all_bytes += message_bytes
        self.explored_bytes += explored * message_bytes
        if tokens:
            cost = self.config.edge.of_token(messages, message_bytes, tokens)
            self._edge.add(cost, tokens, self.config.memory)

    def note_llm(self, messages: int, message_bytes: int, tokens: int) -> None:
        """Learn what the LLM's decision on `tokens` tokens cost."""
        self.all_bytes += message_bytes
        if tokens:
            cost = self.config.llm.of_token(messages, message_bytes, tokens)
            self._llm.add(cost, tokens, self.config.memory)

    def state(self) -> dict[str, NDArray[Any]]:
        """All that was learnt: ``hits`` and ``asked`` float64 [bands], ``costs`` float64 [6]."""
        costs = [
            self._edge.value, self._edge.weight, self._llm.value, self._llm.weight,
            self.explored_bytes, self.all_bytes,
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
        if hits.shape != bands or asked.shape != bands or costs.shape != (6,):
            raise ValueError(f"state has {hits.shape[0]} bands; this rule has {bands[0]}")
        if not all(np.isfinite(part).all() for part in (hits, asked, costs)):
            raise ValueError("state of the opportunistic rule is not finite")
        self._hits, self._asked = hits.astype(np.float64), asked.astype(np.float64)
        self._edge = _Mean(float(costs[0]), float(costs[1]))
        self._llm = _Mean(float(costs[2]), float(costs[3]))
        self.explored_bytes, self.all_bytes = float(costs[4]), float(costs[5])

    def _band(self, uncertainty: FloatArray) -> NDArray[np.int64]:
        bands = self.config.bands
        return np.clip((uncertainty * bands).astype(np.int64), 0, bands - 1)
