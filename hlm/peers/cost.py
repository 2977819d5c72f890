"""When to ask peers before the large model.

Costs of eq. 12-13 (FedHLM, section V-A) are in whatever unit the caller chooses (bytes,
milliseconds, money), as long as it is the same one throughout.
"""

import math
from dataclasses import dataclass

from hlm.ranges import require_between


@dataclass(frozen=True)
class PeerCosts:
    """Costs of resolving an uncertain token, all in one unit.

    Parameters
    ----------
    peer
        C_P2P, cost of asking the peers, from 0.
    llm
        C_LLM, cost of asking the large model, from 0.
    error
        c_err, cost of a wrong token, from 0. 0 gives the paper's rule.
    false_hit
        eps_hit, share of the peers' answers that are wrong, in [0, 1].
    """

    peer: float
    llm: float
    error: float = 0.0
    false_hit: float = 0.0

    def __post_init__(self) -> None:
        for name in ("peer", "llm", "error"):
            require_between(name, getattr(self, name), 0.0, math.inf)
        require_between("false_hit", self.false_hit, 0.0, 1.0)

    def least_hit_probability(self) -> float:
        """p_hit from which asking costs no more than not asking; infinite if it never pays.

        Eq. 13 is C_P2P / C_LLM; with wrong hits, C_P2P / (C_LLM - c_err eps_hit).
        """
        saved = self.llm - self.error * self.false_hit
        return self.peer / saved if saved > 0 else math.inf
